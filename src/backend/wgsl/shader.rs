//! From a file of `shaders/` to the shader that runs.
//!
//! A file is valid WGSL as it stands, for f32. Lines between `//: NAME` and `//: end` are its *splices*: what a row of
//! kernels replaces to specialise it. The splice `tensors` declares the bindings; [`Tensors`] writes it for other
//! element types. Elements lie as in memory of the host, several to a word where they are narrow, and a shader reads
//! and writes them through functions that are named after the tensor:
//!
//! ```text
//! x_at(i: u32) -> f32             element i, as f32; integers and booleans as i32
//! x_four(i: u32) -> vec4<f32>     elements 4i to 4i + 3, of tensors that are read by whole fours
//! x_part(i: u32, there: u32)      the same from element i on, of which so many are there; of tensors that are read in parts of rows
//! x_one(i: u32) -> f32            element i, beside `x_part`
//! y_put(i: u32, v: vec4<f32>)     elements 4i to 4i + 3, each rounded once; behind the end they fall into padding
//! y_set(i: u32, v: f32)           element i, of tensors of 32-bit elements
//! ```
//!
//! Integers are computed in 32 bits: of an i64 the low word is read, and the sign extended where it is written.

use std::{collections::HashMap, fmt::Write};

use lite3r_ir::DType;

/// Every file of `shaders/`.
pub const FILES: &[(&str, &str)] = &[
    ("conv2d.wgsl", include_str!("../../../shaders/conv2d.wgsl")),
    ("conv2d_weight_grad.wgsl", include_str!("../../../shaders/conv2d_weight_grad.wgsl")),
    ("conv_transpose2d.wgsl", include_str!("../../../shaders/conv_transpose2d.wgsl")),
    ("elementwise.wgsl", include_str!("../../../shaders/elementwise.wgsl")),
    ("fill.wgsl", include_str!("../../../shaders/fill.wgsl")),
    ("movement.wgsl", include_str!("../../../shaders/movement.wgsl")),
    ("gemm_few.wgsl", include_str!("../../../shaders/gemm_few.wgsl")),
    ("gemm_matrices.wgsl", include_str!("../../../shaders/gemm_matrices.wgsl")),
    ("gemm.wgsl", include_str!("../../../shaders/gemm.wgsl")),
    ("indexing.wgsl", include_str!("../../../shaders/indexing.wgsl")),
    ("quantize.wgsl", include_str!("../../../shaders/quantize.wgsl")),
    ("reduce.wgsl", include_str!("../../../shaders/reduce.wgsl")),
    ("resize.wgsl", include_str!("../../../shaders/resize.wgsl")),
    ("rows.wgsl", include_str!("../../../shaders/rows.wgsl")),
    ("attention.wgsl", include_str!("../../../shaders/attention.wgsl")),
    ("attention_cooperative.wgsl", include_str!("../../../shaders/attention_cooperative.wgsl")),
    ("attention_delta.wgsl", include_str!("../../../shaders/attention_delta.wgsl")),
    ("attention_grad.wgsl", include_str!("../../../shaders/attention_grad.wgsl")),
    ("block_lists.wgsl", include_str!("../../../shaders/block_lists.wgsl")),
    ("block_mean.wgsl", include_str!("../../../shaders/block_mean.wgsl")),
    ("block_transpose.wgsl", include_str!("../../../shaders/block_transpose.wgsl")),
    ("block_route.wgsl", include_str!("../../../shaders/block_route.wgsl")),
    ("features.wgsl", include_str!("../../../shaders/features.wgsl")),
    ("linear_attention.wgsl", include_str!("../../../shaders/linear_attention.wgsl")),
    ("qkv_heads.wgsl", include_str!("../../../shaders/qkv_heads.wgsl")),
    ("rope.wgsl", include_str!("../../../shaders/rope.wgsl")),
    ("widen.wgsl", include_str!("../../../shaders/widen.wgsl")),
    ("functions.wgsl", include_str!("../../../shaders/functions.wgsl")),
];

/// Files whose shaders find what they read and write from sizes alone, never from what a tensor holds; lists are kept within
/// sizes by what writes them down, `block_lists.wgsl`, or by what reads them. They run without checks of their own at run
/// time, which cost products up to 40 %.
const BOUNDED: &[&str] = &[
    "attention.wgsl",
    "attention_cooperative.wgsl",
    "attention_grad.wgsl",
    "block_mean.wgsl",
    "conv2d.wgsl",
    "conv2d_weight_grad.wgsl",
    "gemm.wgsl",
    "gemm_few.wgsl",
    "gemm_matrices.wgsl",
    "features.wgsl",
    "linear_attention.wgsl",
    "widen.wgsl",
];

/// Files whose loops of so many turns as constants say are copies of their bodies: cooperative matrices in arrays stay in
/// registers where every index is known.
const UNROLLED: &[&str] = &["attention_cooperative.wgsl"];

/// A file with its specialisation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shader {
    /// A file of `shaders/`: `elementwise.wgsl`.
    pub file: &'static str,
    /// What stands in place of its splices, by name.
    pub splices: Vec<(&'static str, String)>,
}

impl Shader {
    /// A file over tensors.
    pub fn new(file: &'static str, tensors: &Tensors) -> Self {
        Self { file, splices: vec![("tensors", tensors.0.clone())] }
    }

    /// With another splice.
    pub fn splice(mut self, name: &'static str, text: impl Into<String>) -> Self {
        self.splices.push((name, text.into()));
        self
    }

    /// With a constant in place of that of the file: `const NAME = …;` is a splice of its own.
    pub fn constant(self, name: &'static str, value: usize) -> Self {
        self.splice(name, format!("const {name}: u32 = {value}u;"))
    }

    /// The whole text: what the file enables, functions that all files share, then the file with its splices.
    pub fn text(&self) -> String {
        let file = |name: &str| FILES.iter().find(|(file, _)| *file == name).map_or("", |(_, text)| text);
        let (enables, own) = enabling(file(self.file));
        let mut out = format!("{enables}{}", file("functions.wgsl"));
        let mut replaced = false;
        for line in own.lines() {
            match line.strip_prefix("//: ") {
                Some("end") => replaced = false,
                Some(name) => {
                    if let Some((_, text)) = self.splices.iter().find(|(n, _)| *n == name) {
                        replaced = true;
                        out += text;
                        out.push('\n');
                    }
                }
                None if replaced => {}
                None => {
                    out += line;
                    out.push('\n');
                }
            }
        }
        if UNROLLED.contains(&self.file) { unrolled(&out, &constants(&out)) } else { out }
    }

    /// Whether no element of a tensor decides where it reads or writes.
    pub fn is_bounded(&self) -> bool {
        BOUNDED.contains(&self.file)
    }

    /// As plans name it: the file and a hash of the whole text.
    pub fn key(&self) -> String {
        format!("{} {}", self.file, &blake3::hash(self.text().as_bytes()).to_hex()[..16])
    }
}

/// The values of `const NAME: u32 = 64u;`, by name.
fn constants(text: &str) -> HashMap<String, usize> {
    let constant = |line: &str| {
        let (name, value) = line.strip_prefix("const ")?.split_once(": u32 = ")?;
        Some((name.to_string(), value.strip_suffix("u;")?.parse().ok()?))
    };
    text.lines().filter_map(constant).collect()
}

/// With copies of the bodies of loops in place of those whose number of turns follows from constants.
fn unrolled(text: &str, constants: &HashMap<String, usize>) -> String {
    let Some((before, rest)) = text.find("for (var ").map(|at| text.split_at(at)) else { return text.into() };
    let Some(open) = rest.find('{') else { return text.into() };
    let mut depth = 0;
    let close = rest[open..].char_indices().find_map(|(at, c)| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        (depth == 0).then_some(open + at)
    });
    let Some(close) = close else { return text.into() };
    let (head, body) = (&rest[..open], unrolled(&rest[open + 1..close], constants));
    let turns = match turns(head, constants) {
        Some((name, turns)) => (0..turns).map(|turn| format!("{{ const {name} = {turn}u;{body}}}\n")).collect(),
        None => format!("{head}{{{body}}}"),
    };
    format!("{before}{turns}{}", unrolled(&rest[close + 1..], constants))
}

/// The variable and the number of turns of `for (var i = 0u; i < WIDTH / 16u; i++)`, of constants.
fn turns<'h>(head: &'h str, constants: &HashMap<String, usize>) -> Option<(&'h str, usize)> {
    let (name, rest) = head.strip_prefix("for (var ")?.split_once(" = 0u; ")?;
    let (bound, step) = rest.strip_prefix(name)?.strip_prefix(" < ")?.split_once("; ")?;
    step.strip_prefix(name)?.strip_prefix("++)")?;
    let value = |word: &str| match word.strip_suffix('u').and_then(|digits| digits.parse().ok()) {
        Some(number) => Some(number),
        None => constants.get(word).copied(),
    };
    let mut words = bound.split_whitespace();
    let mut turns = value(words.next()?)?;
    while let (Some(sign), Some(word)) = (words.next(), words.next()) {
        turns = match sign {
            "*" => turns * value(word)?,
            "/" => turns / value(word)?,
            _ => return None,
        };
    }
    Some((name, turns))
}

/// Parts a file into the lines that enable extensions, which stand first in a text, and the rest.
fn enabling(file: &str) -> (&str, &str) {
    let lines = file.split_inclusive('\n').take_while(|line| line.starts_with("enable "));
    file.split_at(lines.map(str::len).sum())
}

/// The declarations of the tensors that a shader is bound to, in the order of bindings. All are writable: the values of
/// a run share a buffer, and within a dispatch a buffer is either read or written.
#[derive(Clone, Debug, Default)]
pub struct Tensors(String, u32);

impl Tensors {
    /// With one that is read.
    pub fn read(mut self, name: &str, dtype: DType) -> Self {
        self = self.words(name);
        let element = match dtype {
            DType::F32 | DType::I32 => format!("{name}[i]"),
            DType::I64 => format!("{name}[2u * i]"),
            DType::F16 | DType::BF16 => format!("({name}[i / 2u] >> (16u * (i % 2u))) & 0xffffu"),
            _ => format!("({name}[i / 4u] >> (8u * (i % 4u))) & 0xffu"),
        };
        let (value, of) = match dtype {
            DType::F32 => ("f32", "bitcast<f32>"),
            DType::F16 => ("f32", "float_of_f16"),
            DType::BF16 => ("f32", "float_of_bf16"),
            DType::F8E4M3 => ("f32", "float_of_e4m3"),
            DType::F8E5M2 => ("f32", "float_of_e5m2"),
            _ => ("i32", "bitcast<i32>"),
        };
        _ = writeln!(self.0, "fn {name}_at(i: u32) -> {value} {{ return {of}({element}); }}");
        self
    }

    /// With one of floats that is read by fours, its elements a multiple of four: `x_four`.
    pub fn fours(mut self, name: &str, dtype: DType) -> Self {
        let (words, value) = match dtype {
            DType::F16 => ("vec2<u32>", "vec4(unpack2x16float(v.x), unpack2x16float(v.y))"),
            DType::BF16 => {
                ("vec2<u32>", "bitcast<vec4<f32>>(vec4(v.x << 16u, v.x & ~0xffffu, v.y << 16u, v.y & ~0xffffu))")
            }
            DType::F8E4M3 => (
                "u32",
                "vec4(float_of_e4m3(v & 0xffu), float_of_e4m3((v >> 8u) & 0xffu), float_of_e4m3((v >> 16u) & 0xffu), \
                 float_of_e4m3(v >> 24u))",
            ),
            _ => ("vec4<u32>", "bitcast<vec4<f32>>(v)"),
        };
        self = self.declared(name, &format!("array<{words}>"));
        _ = writeln!(self.0, "fn {name}_four(i: u32) -> vec4<f32> {{ let v = {name}[i]; return {value}; }}");
        self
    }

    /// With one of floats that is read by fours where it may be, element by element elsewhere.
    pub fn read_or_fours(self, name: &str, dtype: DType, fours: bool) -> Self {
        if fours { self.fours(name, dtype) } else { self.read(name, dtype) }
    }

    /// With one of floats that is read in parts of a row, by whole fours where rows are: `x_part(i, there)`, the element i
    /// and the three behind it, of which `there` are there, and `x_one(i)`.
    pub fn parts(self, name: &str, dtype: DType, fours: bool) -> Self {
        let (part, one) = if fours {
            (format!("return {name}_four(i / 4u);"), format!("{name}_four(i / 4u)[i % 4u]"))
        } else {
            let each = format!("part[j] = {name}_at(i + j);");
            let part =
                format!("var part = vec4(0.0); for (var j = 0u; j < min(there, 4u); j++) {{ {each} }} return part;");
            (part, format!("{name}_at(i)"))
        };
        self.read_or_fours(name, dtype, fours)
            .function(&format!("fn {name}_part(i: u32, there: u32) -> vec4<f32> {{ {part} }}"))
            .function(&format!("fn {name}_one(i: u32) -> f32 {{ return {one}; }}"))
    }

    /// With one that is written.
    pub fn write(mut self, name: &str, dtype: DType) -> Self {
        self = self.words(name);
        let halves = |of: &str| format!("{name}[2u * i] = {of}(v.xy); {name}[2u * i + 1u] = {of}(v.zw);");
        let bytes = |of: &str| format!("{name}[i] = pack_bytes({of});");
        let body = match dtype {
            DType::F32 | DType::I32 => {
                format!("for (var j = 0u; j < 4u; j++) {{ {name}[4u * i + j] = bitcast<u32>(v[j]); }}")
            }
            DType::I64 => format!(
                "for (var j = 0u; j < 4u; j++) {{ {name}[8u * i + 2u * j] = bitcast<u32>(v[j]); \
                 {name}[8u * i + 2u * j + 1u] = bitcast<u32>(v[j] >> 31u); }}"
            ),
            DType::F16 => halves("f16_of_pair"),
            DType::BF16 => halves("bf16_of_pair"),
            DType::F8E4M3 => {
                bytes("vec4(e4m3_of_float(v.x), e4m3_of_float(v.y), e4m3_of_float(v.z), e4m3_of_float(v.w))")
            }
            _ => bytes("bitcast<vec4<u32>>(v)"),
        };
        let value = if dtype.is_float() { "f32" } else { "i32" };
        _ = writeln!(self.0, "fn {name}_put(i: u32, v: vec4<{value}>) {{ {body} }}");
        if matches!(dtype, DType::F32 | DType::I32) {
            _ = writeln!(self.0, "fn {name}_set(i: u32, v: {value}) {{ {name}[i] = bitcast<u32>(v); }}");
        }
        self
    }

    /// With one of words or pairs of words that is written element by element: `y_set`.
    pub fn single(mut self, name: &str, dtype: DType) -> Self {
        self = self.words(name);
        let (value, body) = match dtype {
            DType::I64 => {
                ("i32", format!("{name}[2u * i] = bitcast<u32>(v); {name}[2u * i + 1u] = bitcast<u32>(v >> 31u);"))
            }
            DType::I32 => ("i32", format!("{name}[i] = bitcast<u32>(v);")),
            _ => ("f32", format!("{name}[i] = bitcast<u32>(v);")),
        };
        _ = writeln!(self.0, "fn {name}_set(i: u32, v: {value}) {{ {body} }}");
        self
    }

    /// With a function, in place of a tensor that is not there.
    pub fn function(mut self, text: &str) -> Self {
        _ = writeln!(self.0, "{text}");
        self
    }

    /// Words, as they lie.
    pub fn words(self, name: &str) -> Self {
        self.declared(name, "array<u32>")
    }

    /// Of a type of the language.
    pub fn declared(mut self, name: &str, ty: &str) -> Self {
        let binding = self.1;
        _ = writeln!(self.0, "@group(0) @binding({binding}) var<storage, read_write> {name}: {ty};");
        self.1 += 1;
        self
    }

    /// Ends with the binding of the sizes.
    pub fn sizes(mut self) -> Self {
        _ = write!(self.0, "@group(0) @binding({}) var<uniform> sizes: Sizes;", self.1);
        self
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::Features, *};

    /// What `naga` says of a text, if it is not valid where so much is offered.
    pub fn fault(text: &str, offered: &Features) -> Option<String> {
        let capability =
            |is: bool, of: naga::valid::Capabilities| if is { of } else { naga::valid::Capabilities::empty() };
        let capabilities = capability(offered.f16, naga::valid::Capabilities::SHADER_FLOAT16)
            | capability(offered.subgroups, naga::valid::Capabilities::SUBGROUP)
            | capability(offered.matrices, naga::valid::Capabilities::COOPERATIVE_MATRIX);
        let module = match naga::front::wgsl::parse_str(text) {
            Ok(module) => module,
            Err(error) => return Some(error.emit_to_string(text)),
        };
        let mut validator = naga::valid::Validator::new(
            naga::valid::ValidationFlags::all(),
            naga::valid::Capabilities::SHADER_FLOAT16_IN_FLOAT32 | capabilities,
        );
        validator.validate(&module).err().map(|error| error.emit_to_string(text))
    }

    #[test]
    fn files_are_valid_as_they_stand() {
        for (name, text) in FILES.iter().filter(|(name, _)| *name != "functions.wgsl") {
            let functions = FILES.iter().find(|(name, _)| *name == "functions.wgsl").unwrap().1;
            let all = Features { subgroups: true, ..Features::MATRICES };
            let (enables, text) = enabling(text);
            assert_eq!(fault(&format!("{enables}{functions}{text}"), &all), None, "{name}");
        }
    }

    #[test]
    fn every_file_is_listed() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(name == "README.md" || FILES.iter().any(|(listed, _)| *listed == name), "{name}");
        }
    }

    #[test]
    fn loops_of_constants_are_copied() {
        let text = "const N: u32 = 8u;\nfor (var i = 0u; i < N / 4u; i++) { a[i]; for (var j = i; j < n; j++) { b } }";
        let copied = unrolled(text, &constants(text));
        let copy = |i: usize| format!("{{ const i = {i}u; a[i]; for (var j = i; j < n; j++) {{ b }} }}\n");
        assert_eq!(copied, format!("const N: u32 = 8u;\n{}{}", copy(0), copy(1)));
    }

    #[test]
    fn splices_replace_what_stands_between_marks() {
        let tensors = Tensors::default().read("x", DType::BF16).write("y", DType::F16).sizes();
        let text = Shader::new("elementwise.wgsl", &tensors).text();
        assert!(text.contains("float_of_bf16") && text.contains("f16_of_pair(v.xy)"), "{text}");
        assert!(!text.contains("//: end"));
    }
}
