//! Runs compiled plans.
fn main() {}
