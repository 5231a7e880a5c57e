//! Converters: one family of operators a file, each with a closed table.

mod attention;
mod conv;
mod einsum;
mod elementwise;
mod index;
mod norm;
mod product;
mod reduce;
mod resize;
mod shape;
mod source;
mod tools;

use super::{
    build::Importer,
    known::Val,
    node::{Node, Problem},
};

/// The results of a node, in order. Trailing results that are not supported are left out.
type Results = Result<Vec<Val>, Problem>;

/// An operator that can be imported.
pub struct Row {
    /// As ONNX calls it.
    pub name: &'static str,
    /// The first operator set that has it.
    pub since: i64,
    /// Converts a node of it.
    pub convert: fn(&mut Importer<'_>, &Node<'_>) -> Results,
}

const fn row(name: &'static str, since: i64, convert: fn(&mut Importer<'_>, &Node<'_>) -> Results) -> Row {
    Row { name, since, convert }
}

/// All operators, by family.
const FAMILIES: [&[Row]; 11] = [
    source::ROWS,
    elementwise::ROWS,
    shape::ROWS,
    index::ROWS,
    reduce::ROWS,
    product::ROWS,
    einsum::ROWS,
    norm::ROWS,
    attention::ROWS,
    conv::ROWS,
    resize::ROWS,
];

/// The converter of an operator of the default domain, if the operator set has it.
pub fn find(name: &str, opset: i64) -> Option<&'static Row> {
    FAMILIES.iter().flat_map(|rows| rows.iter()).find(|row| row.name == name && row.since <= opset)
}

/// The operators that are supported at an operator set, sorted.
pub fn supported(opset: i64) -> Vec<&'static str> {
    let rows = FAMILIES.iter().flat_map(|rows| rows.iter());
    let mut names: Vec<&str> = rows.filter(|row| row.since <= opset).map(|row| row.name).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_operator_stands_once() {
        let names = super::supported(24);
        assert!(names.windows(2).all(|pair| pair[0] < pair[1]), "{names:?}");
        assert!(super::find("Attention", 22).is_none() && super::find("Attention", 23).is_some());
    }
}
