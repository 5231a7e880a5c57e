//! Expressions of several functions as text in a language of kernels.

use lite3r_ir::{Op, ops::pointwise::Expression};

/// `expr` over the operands `a`, `b`, …; `literal` writes a number, `template` a function over `a` and `b`.
pub fn expanded(
    expr: &Expression,
    literal: &dyn Fn(f64) -> String,
    template: &dyn Fn(&Op) -> Result<String, String>,
) -> Result<String, String> {
    let Expression::Call(function, arguments) = expr else {
        return Ok(match expr {
            Expression::Number(number) => literal(*number),
            operand => operand.to_string(),
        });
    };
    let arguments: Vec<String> = arguments.iter().map(|e| expanded(e, literal, template)).collect::<Result<_, _>>()?;
    let template = template(&Op::parse(function.name, &Vec::new()).map_err(|e| e.join("; "))?)?;
    // Letters that stand alone are the arguments.
    let mut text = String::from("(");
    let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for word in template.split_inclusive(|c| !letter(c)) {
        let (name, mark) = word.split_at(word.trim_end_matches(|c| !letter(c)).len());
        text += match name {
            "a" => &arguments[0],
            "b" => arguments.get(1).ok_or("takes one argument more")?,
            other => other,
        };
        text += mark;
    }
    Ok(text + ")")
}
