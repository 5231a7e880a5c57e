//! Which operations are elementwise.

/// The rows `row(NAME, OP)` of all operations that compute an element of the result from one element of each operand by a
/// fixed expression, and those behind the semicolon.
macro_rules! elementwise_rows {
    ($row:ident; $($more:expr),*) => {
        elementwise_rows!(@ $row; $($more),*;
            neg abs exp log sqrt reciprocal sin cos tan atan erf tanh
            sigmoid silu gelu relu sign floor ceil round clip cast not add
            sub mul div pow max min remainder equal less less_equal and or
            where
        )
    };
    (@ $row:ident; $($more:expr),*; $($op:ident)*) => {
        &[$($row(concat!(stringify!($op), ".elementwise"), stringify!($op)),)* $($more),*]
    };
}
pub(crate) use elementwise_rows;
