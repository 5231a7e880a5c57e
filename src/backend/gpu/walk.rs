//! Walks over elements under strides: what kernels of every device count by.

use lite3r_ir::ops::shape_rules::strides;

/// A dimension: its size, and the stride of each operand along it.
pub type Axis = (usize, Vec<i64>);

/// `shape` with as few dimensions as say the same: those that all operands pass in one stride are joined, those of size
/// one are left out.
pub fn join(shape: &[usize], strides: &[Vec<i64>]) -> Vec<Axis> {
    let mut joined: Vec<Axis> = Vec::new();
    for (axis, &size) in shape.iter().enumerate().filter(|(_, size)| **size != 1) {
        let own: Vec<i64> = strides.iter().map(|s| s[axis]).collect();
        match joined.last_mut() {
            Some((outer, steps)) if steps.iter().zip(&own).all(|(a, b)| *a == b * size as i64) => {
                *outer *= size;
                *steps = own;
            }
            _ => joined.push((size, own)),
        }
    }
    joined
}

/// Dimensions that stay and dimensions that go, with their strides in x.
pub fn separate(x: &[usize], axes: &[usize]) -> (Vec<Axis>, Vec<Axis>) {
    let own = strides(x);
    let pick = |inside: bool| {
        let picked = (0..x.len()).filter(|d| axes.contains(d) == inside);
        let (shape, steps): (Vec<usize>, Vec<i64>) = picked.map(|d| (x[d], own[d] as i64)).unzip();
        join(&shape, &[steps])
    };
    (pick(false), pick(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_kind_join() {
        let one = |axes: &[(usize, i64)]| axes.iter().map(|(n, s)| (*n, vec![*s])).collect::<Vec<Axis>>();
        assert_eq!(separate(&[2, 3, 5, 7], &[1, 2]), (one(&[(2, 105), (7, 1)]), one(&[(15, 7)])));
        assert_eq!(separate(&[2, 1, 5], &[0, 1, 2]), (one(&[]), one(&[(10, 1)])));
        assert_eq!(separate(&[4], &[]), (one(&[(4, 1)]), one(&[])));
    }
}
