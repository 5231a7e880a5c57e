//! `tan(x)`: tan x in radians, elementwise.

crate::unary!(
    /// tan x in radians, elementwise.
    Tan, "tan", real, f64::tan, 4.0, [(0.0, 0.0), (0.5, 0.5463024898437905)],
    |at, _, y, g| {
        let square = at.mul(y, y)?;
        let slope = at.plus(square, 1.0)?;
        at.mul(g, slope)
    }
);
