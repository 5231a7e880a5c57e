//! `pair.txt` of MVSNet: for every view the views that see the same, and how well.
//!
//! ```text
//! N
//! ID                       (N times)
//! K ID SCORE … ID SCORE    (best first; K may be less than ten, even 0)
//! ```

use std::{collections::BTreeMap, fmt::Write};

/// For the number of a view, the numbers of others and their scores.
pub type Pairs = BTreeMap<u32, Vec<(u32, f64)>>;

/// Reads the text of a file, or says everything that is wrong with it.
pub fn parse(text: &str) -> Result<Pairs, Vec<String>> {
    let mut words = text.split_whitespace();
    let count: usize = next(&mut words, "the number of views").map_err(|p| vec![p])?;
    let mut pairs = Pairs::new();
    let mut problems = Vec::new();
    for _ in 0..count {
        let (id, others) = view(&mut words).map_err(|p| vec![p])?;
        for (i, (other, score)) in others.iter().enumerate() {
            if *other == id {
                problems.push(format!("view {id} is paired with itself"));
            } else if others[..i].iter().any(|(earlier, _)| earlier == other) {
                problems.push(format!("view {id} is paired with view {other} twice"));
            }
            if !score.is_finite() {
                problems.push(format!("the score of views {id} and {other} is {score}"));
            }
        }
        if pairs.insert(id, others).is_some() {
            problems.push(format!("view {id} is listed twice"));
        }
    }
    if words.next().is_some() {
        problems.push(format!("goes on after the {count} views that it announces"));
    }
    if problems.is_empty() { Ok(pairs) } else { Err(problems) }
}

/// The text of a file.
pub fn text(pairs: &Pairs) -> String {
    let mut out = format!("{}\n", pairs.len());
    for (id, others) in pairs {
        // Writing to text cannot fail.
        let _ = write!(out, "{id}\n{} ", others.len());
        for (other, score) in others {
            let _ = write!(out, "{other} {score} ");
        }
        out.push('\n');
    }
    out
}

fn view<'a>(words: &mut impl Iterator<Item = &'a str>) -> Result<(u32, Vec<(u32, f64)>), String> {
    let id = next(words, "the number of a view")?;
    let count: usize = next(words, &format!("how many views see what view {id} sees"))?;
    let what = format!("the views that see what view {id} sees");
    let other = |_| Ok((next(words, &what)?, next(words, &what)?));
    Ok((id, (0..count).map(other).collect::<Result<_, String>>()?))
}

fn next<'a, T: std::str::FromStr>(words: &mut impl Iterator<Item = &'a str>, what: &str) -> Result<T, String> {
    let word = words.next().ok_or_else(|| format!("ends before {what}"))?;
    word.parse().map_err(|_| format!("`{word}` stands where {what} should"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_with_few_and_without_pairs_are_read() {
        let pairs = parse("3\n0\n2 1 2346.4 7 12\n1\n1 0 2346.4\n7\n0 \n").unwrap();
        assert_eq!(pairs[&0], [(1, 2346.4), (7, 12.0)]);
        assert_eq!((pairs[&1].len(), pairs[&7].len()), (1, 0));
        assert_eq!(parse(&text(&pairs)).unwrap(), pairs);
        assert_eq!(parse("0\n").unwrap(), Pairs::new());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let problems = |text: &str| parse(text).unwrap_err();
        assert_eq!(problems(""), ["ends before the number of views"]);
        assert_eq!(problems("2\n0\n0\n"), ["ends before the number of a view"]);
        assert!(problems("1\n0\n3 1 5 2 4\n")[0].contains("ends before the views"));
        assert!(problems("1\n0\n1 1.5 5\n")[0].contains("`1.5` stands"));
        assert!(problems("1\n0\n0\n1\n0\n")[0].contains("goes on"));
        let found = problems("2\n0\n3 0 1 1 nan 1 2\n0\n0\n");
        assert_eq!(found.len(), 4, "{found:?}");
    }
}
