//! Walks over elements under strides: what kernels of every device count by.

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
