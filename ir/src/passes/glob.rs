//! Names by pattern: what options of passes choose weights and inputs with.

/// Whether a name is meant by a pattern: the whole name or one of the parts between its dots, with `*` for any
/// characters. `proj_lin` means `blocks.3.attn.proj_lin.w`, and so do `blocks.*.w` and `proj_*`.
pub fn matches(pattern: &str, name: &str) -> bool {
    whole(pattern, name) || name.split('.').any(|part| whole(pattern, part))
}

fn whole(pattern: &str, name: &str) -> bool {
    if !pattern.contains('*') {
        return name == pattern;
    }
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|start| name.strip_prefix(start)) else { return false };
    let Some(end) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= end.len() && rest.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_mean_whole_names_or_parts() {
        for (pattern, name) in [
            ("a.b", "a.b"),
            ("proj_lin", "blocks.3.attn.proj_lin.w"),
            ("*", "anything"),
            ("blocks.*.w", "blocks.3.attn.proj_lin.w"),
            ("*lin*", "proj_lin.w"),
            ("proj_*", "blocks.3.attn.proj_lin.w"),
            ("a*a", "aa"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("proj", "proj_lin.w"), ("a*a", "a"), ("b*", "ab"), ("*b", "ba"), ("", "a")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
