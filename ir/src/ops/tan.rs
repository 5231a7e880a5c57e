//! `tan(x)`: tan x in radians, elementwise.

crate::unary!(
    /// tan x in radians, elementwise.
    Tan, "tan", real, f64::tan, 4.0, [(0.0, 0.0), (0.5, 0.5463024898437905)]
);
