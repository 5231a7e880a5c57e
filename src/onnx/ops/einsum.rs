//! Einsum of one or two operands, as a product of matrices or of broadcast tensors.

use lite3r_ir::{
    Dim,
    ops::{self},
};

use super::{Results, Row, row};
use crate::onnx::{
    build::Importer,
    dims,
    known::Val,
    node::{Node, Problem},
};

/// The operator.
pub const ROWS: &[Row] = &[row("Einsum", 12, einsum)];

fn einsum(importer: &mut Importer<'_>, node: &Node<'_>) -> Results {
    let equation = node.text("equation")?.ok_or("attribute `equation` is missing")?;
    let plain: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, to) = plain.split_once("->").ok_or_else(|| unsupported(equation, "without `->`"))?;
    let terms: Vec<Vec<char>> = left.split(',').map(|t| t.chars().collect()).collect();
    let to: Vec<char> = to.chars().collect();
    for term in terms.iter().chain([&to]) {
        if term.iter().any(|c| !c.is_ascii_alphabetic()) {
            return Err(unsupported(equation, "with an ellipsis"));
        }
        if (1..term.len()).any(|i| term[..i].contains(&term[i])) {
            return Err(unsupported(equation, "with a letter twice in one term"));
        }
    }
    let operands = node.all()?;
    if operands.len() != terms.len() {
        return Err(format!("`{equation}` has {} terms for {} operands", terms.len(), operands.len()).into());
    }
    if let Some(odd) = (0..terms.len()).find(|i| importer.shape(operands[*i]).len() != terms[*i].len()) {
        return Err(format!("`{equation}` does not fit {}", importer.ty(operands[odd])).into());
    }
    if let Some(odd) = to.iter().find(|c| !terms.iter().any(|t| t.contains(c))) {
        return Err(format!("`{odd}` of `{equation}` stands in no operand").into());
    }
    match (operands.as_slice(), terms.as_slice()) {
        ([x], [term]) => Ok(vec![single(importer, x, term, &to)?]),
        ([x, y], [a, b]) => Ok(vec![pair(importer, (x, a), (y, b), &to)?]),
        _ => Err(unsupported(equation, "of more than two operands")),
    }
}

fn unsupported(equation: &str, why: &str) -> Problem {
    Problem::unsupported(format!("`{equation}`: equations {why} are not supported"))
}

/// Sums over what the result lacks, then orders the rest.
fn single(importer: &mut Importer<'_>, x: &Val, term: &[char], to: &[char]) -> Result<Val, Problem> {
    let (x, term) = sum_out(importer, x, term, to)?;
    order(importer, &x, &term, to)
}

fn sum_out(importer: &mut Importer<'_>, x: &Val, term: &[char], keep: &[char]) -> Result<(Val, Vec<char>), Problem> {
    let axes: Vec<usize> = (0..term.len()).filter(|i| !keep.contains(&term[*i])).collect();
    if axes.is_empty() {
        return Ok((x.clone(), term.to_vec()));
    }
    let x = importer.emit(ops::ReduceSum { axes, keep: false }, &[x])?;
    Ok((x, term.iter().copied().filter(|c| keep.contains(c)).collect()))
}

fn order(importer: &mut Importer<'_>, x: &Val, from: &[char], to: &[char]) -> Result<Val, Problem> {
    let place = |c: &char| from.iter().position(|f| f == c).ok_or_else(|| format!("`{c}` is in no operand"));
    let perm = to.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    importer.transpose(x, perm)
}

fn pair(
    importer: &mut Importer<'_>,
    (x, a): (&Val, &[char]),
    (y, b): (&Val, &[char]),
    to: &[char],
) -> Result<Val, Problem> {
    // What stands in one operand alone and not in the result is summed first.
    let (x, a) = sum_out(importer, x, a, &[b, to].concat())?;
    let (y, b) = sum_out(importer, y, b, &[&a[..], to].concat())?;
    let pick =
        |from: &[char], test: &dyn Fn(&char) -> bool| from.iter().copied().filter(|c| test(c)).collect::<Vec<_>>();
    let batch = pick(&a, &|c| b.contains(c) && to.contains(c));
    let inner = pick(&a, &|c| b.contains(c) && !to.contains(c));
    let (rows, columns) = (pick(&a, &|c| !b.contains(c)), pick(&b, &|c| !a.contains(c)));
    let sizes = |importer: &Importer<'_>, x: &Val, term: &[char], of: &[char]| -> Vec<Dim> {
        let shape = importer.shape(x);
        of.iter().filter_map(|c| term.iter().position(|t| t == c)).map(|i| shape[i].clone()).collect()
    };
    let (nb, nr, nc) =
        (sizes(importer, &x, &a, &batch), sizes(importer, &x, &a, &rows), sizes(importer, &y, &b, &columns));
    let ones = |n: usize| vec![Dim::from(1); n];
    let joined = [&batch[..], &rows, &columns].concat();
    let x = order(importer, &x, &a, &[&batch[..], &rows, &inner].concat())?;
    let product = if inner.is_empty() {
        let y = order(importer, &y, &b, &[&batch[..], &columns].concat())?;
        let x = importer.reshape(&x, [&nb[..], &nr, &ones(nc.len())].concat())?;
        let y = importer.reshape(&y, [&nb[..], &ones(nr.len()), &nc].concat())?;
        importer.emit(ops::Mul {}, &[&x, &y])?
    } else {
        let k = dims::product(&sizes(importer, &y, &b, &inner));
        let y = order(importer, &y, &b, &[&batch[..], &inner, &columns].concat())?;
        let x = importer.reshape(&x, [&nb[..], &[dims::product(&nr), k.clone()]].concat())?;
        let y = importer.reshape(&y, [&nb[..], &[k, dims::product(&nc)]].concat())?;
        let z = importer.emit(ops::MatMul { transpose_b: false }, &[&x, &y])?;
        importer.reshape(&z, [&nb[..], &nr, &nc].concat())?
    };
    order(importer, &product, &joined, to)
}
