//! Compiles backbones to plans.
fn main() {}
