//! Shape arithmetic on polynomials: what can be said about dimensions before their symbols have values.

use lite3r_ir::Dim;

/// Whether a dimension is below, equal to or above zero for all symbols from 1 on; `None` where that depends.
pub fn sign(dim: &Dim) -> Option<std::cmp::Ordering> {
    if let Some(c) = dim.constant() {
        return Some(c.cmp(&0));
    }
    if dim.lower_bound().is_some_and(|least| least > 0) {
        return Some(std::cmp::Ordering::Greater);
    }
    let negated = Dim::from(0) - dim.clone();
    negated.lower_bound().is_some_and(|least| least > 0).then_some(std::cmp::Ordering::Less)
}

/// Whether a ≤ b for all symbols from 1 on; `false` where that is not known.
pub fn at_most(a: &Dim, b: &Dim) -> bool {
    (b.clone() - a.clone()).lower_bound().is_some_and(|least| least >= 0)
}

/// Refuses sizes below zero, and sizes so large that arithmetic on them could overflow.
pub fn checked(shape: &[Dim]) -> Result<(), String> {
    match shape.iter().find(|d| d.constant().is_some_and(|c| !(0..=LARGEST).contains(&c))) {
        Some(d) => Err(format!("a dimension cannot have size {d}")),
        None => Ok(()),
    }
}

/// The largest size of a dimension.
pub const LARGEST: i64 = 1 << 40;

/// The product of dimensions.
pub fn product(dims: &[Dim]) -> Dim {
    dims.iter().cloned().fold(Dim::from(1), |n, d| n * d)
}

/// The one unknown factor in `whole = known · ?`, cancelling equal dimensions first.
pub fn quotient(whole: &[Dim], known: &[Dim]) -> Option<Dim> {
    let mut whole = whole.to_vec();
    let mut rest = Vec::new();
    for dim in known {
        match whole.iter().position(|d| d == dim) {
            Some(at) => drop(whole.swap_remove(at)),
            None => rest.push(dim.clone()),
        }
    }
    product(&whole).divide(&product(&rest))
}

/// The target of an ONNX Reshape with its wildcards replaced: 0 copies a dimension of `from` unless `allow_zero`, −1 is
/// whatever is left over.
pub fn reshape(from: &[Dim], target: &[Dim], allow_zero: bool) -> Result<Vec<Dim>, String> {
    let mut to = target.to_vec();
    for (i, dim) in to.iter_mut().enumerate() {
        if dim.constant() == Some(0) && !allow_zero {
            *dim = from.get(i).cloned().ok_or_else(|| format!("there is no dimension {i} to copy"))?;
        }
    }
    let wild: Vec<usize> = (0..to.len()).filter(|i| to[*i].constant() == Some(-1)).collect();
    match wild.as_slice() {
        [] => Ok(to),
        [at] => {
            let known: Vec<Dim> = (0..to.len()).filter(|i| i != at).map(|i| to[i].clone()).collect();
            to[*at] = quotient(from, &known)
                .ok_or_else(|| format!("{} does not divide by {}", product(from), product(&known)))?;
            Ok(to)
        }
        _ => Err("more than one dimension of the new shape is -1".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    fn dim(text: &str) -> Dim {
        text.parse().unwrap()
    }

    #[test]
    fn signs_hold_for_all_symbols_from_one() {
        assert_eq!(sign(&dim("S")), Some(Ordering::Greater));
        assert_eq!(sign(&dim("S-1")), None);
        assert_eq!(sign(&dim("-2*S+1")), Some(Ordering::Less));
        assert_eq!(sign(&dim("S*T-S")), None);
        assert_eq!(sign(&dim("0")), Some(Ordering::Equal));
        assert!(at_most(&dim("1"), &dim("S")));
        assert!(at_most(&dim("S-1"), &dim("S")));
        assert!(!at_most(&dim("2"), &dim("S")));
    }

    #[test]
    fn sizes_have_limits() {
        assert!(checked(&[dim("0"), dim("S-1"), dim("1374")]).is_ok());
        assert!(checked(&[dim("-2")]).is_err());
        assert!(checked(&[Dim::from(i64::MAX)]).is_err());
    }

    #[test]
    fn wildcards_are_found() {
        let shape = |texts: &[&str]| texts.iter().map(|t| dim(t)).collect::<Vec<_>>();
        let from = shape(&["1", "S", "37", "64"]);
        assert_eq!(reshape(&from, &shape(&["0", "-1", "64"]), false), Ok(shape(&["1", "37*S", "64"])));
        assert_eq!(reshape(&from, &shape(&["-1", "37", "16"]), false), Ok(shape(&["4*S", "37", "16"])));
        assert_eq!(reshape(&shape(&["S-1", "4"]), &shape(&["S-1", "-1"]), false), Ok(shape(&["S-1", "4"])));
        assert!(reshape(&from, &shape(&["-1", "-1"]), false).is_err());
        assert!(reshape(&from, &shape(&["-1", "5"]), false).is_err());
    }
}
