//! What a compilation can be told, and how it is written on a command line.

use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use lite3r_ir::{
    Bindings, DType,
    attr::{Attr, AttrField, AttrMap},
    ops::attention::AttentionKind,
    passes::fp8_attention::Kinds,
    text::parse_calls,
};

use crate::{
    Error, Result,
    backend::{DenseHeads, Target},
};

/// Everything about a compilation but the model itself.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Values for symbolic dimensions; several values of one symbol make several entries of one plan.
    pub bind: Vec<Bind>,
    /// Which axis of the images counts views, where the compiler cannot tell.
    pub views_axis: Option<usize>,
    /// Options of the pass `lora`, for a model that has been trained with it.
    pub lora: Option<AttrMap>,
    /// How attentions are rewritten, later ones winning.
    pub attention: Vec<AttentionRule>,
    /// What products compute in.
    pub precision: Precision,
    /// How dense heads are computed; a matter of the target.
    pub heads: DenseHeads,
    /// Options of `fuse_qkv`; a matter of the target.
    pub joint_heads: Option<&'static str>,
    /// Options of `fp8_attention` where `attention=auto`; a matter of the target.
    pub coded_attention: Option<&'static str>,
    /// Which view the model takes as its reference.
    pub reference_view: ReferenceView,
    /// What training or fitting has written, safetensors: stands before the model's own weights.
    pub trained: Vec<PathBuf>,
    /// Which outputs are kept; all if empty.
    pub outputs: Vec<String>,
    /// The passes to run instead of the usual ones.
    pub passes: Option<String>,
    /// Recognitions that must count exactly that many.
    pub require: Vec<Requirement>,
}

impl Options {
    /// One set of bindings for every entry of the plan: the product of all values of all symbols.
    pub fn entries(&self) -> Vec<Bindings> {
        let mut by_symbol: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for bind in &self.bind {
            let values = by_symbol.entry(&bind.symbol).or_default();
            for value in &bind.values {
                if !values.contains(value) {
                    values.push(*value);
                }
            }
        }
        by_symbol.into_iter().fold(vec![Bindings::new()], |entries, (symbol, values)| {
            let with = |entry: &Bindings, value: usize| {
                let mut entry = entry.clone();
                entry.insert(symbol.into(), value);
                entry
            };
            entries.iter().flat_map(|entry| values.iter().map(|v| with(entry, *v)).collect::<Vec<_>>()).collect()
        })
    }
}

/// `S=4` or `S=2,4,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The symbol.
    pub symbol: String,
    /// Its values, each at least one.
    pub values: Vec<usize>,
}

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not SYMBOL=N or SYMBOL=N,N,… with every N at least 1, such as `S=4`");
        let (symbol, values) = text.split_once('=').ok_or_else(bad)?;
        let value = |v: &str| v.trim().parse::<usize>().ok().filter(|n| *n >= 1).ok_or_else(bad);
        let values = values.split(',').map(value).collect::<Result<Vec<_>, _>>()?;
        let symbol = symbol.trim();
        if symbol.is_empty() {
            return Err(bad());
        }
        Ok(Self { symbol: symbol.into(), values })
    }
}

/// `attention=13`: the count that a recognition must reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// What a pass counts.
    pub name: String,
    /// How many there must be.
    pub count: usize,
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').and_then(|(n, c)| Some((n.trim(), c.trim().parse().ok()?)));
        match parts {
            Some((name, count)) if !name.is_empty() => Ok(Self { name: name.into(), count }),
            _ => Err(format!("`{text}` is not NAME=COUNT, such as `attention=88`")),
        }
    }
}

/// What products compute in. Nothing degrades from one to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Precision {
    /// As the model is: f32.
    #[default]
    F32,
    /// Products in bf16, sums and the residual stream in f32.
    Bf16,
    /// Products in f16, as above: finer, up to 65504.
    F16,
    /// Weights and activations of linear layers in e4m3 (W8A8), with the options of the pass `fp8`; `rest=bf16` (or f16)
    /// computes all other products in 16 bits, `rest=f32` leaves them; `residual`, the same, rounds the residual stream;
    /// `attention=all` (or `encoder`, `frame`, `global`; `none`) has attention multiply e4m3 codes, see the pass
    /// `fp8_attention`, `attention=auto` where the target is best at it; `convolution=e4m3` (or `none`) has convolutions of
    /// dense heads do so, see `fp8_convolution`.
    Fp8(AttrMap),
    /// Weights of linear layers stored in e4m3, arithmetic wider, with the options of the pass `fp8w`, and `rest` and
    /// `residual` as above.
    Fp8w(AttrMap),
}

impl Precision {
    /// With what a target of tensor cores prefers where it is not said: `rest=bf16` (or f16), and beside FP8 activations,
    /// whose rounding is coarser, `residual=bf16`, `attention=auto`, and `activation=auto`, scales that tiles of products
    /// can give.
    pub fn for_target(mut self, target: &dyn Target) -> Self {
        let activations = matches!(self, Self::Fp8(_));
        if let Self::Fp8(attrs) | Self::Fp8w(attrs) = &mut self
            && let Some(narrow_type) = target.prefers()
        {
            let says = |attrs: &AttrMap, name: &str| attrs.iter().any(|(n, _)| n == name);
            let narrow = !says(attrs, "rest");
            let wanted = [
                ("rest", narrow_type.name(), narrow),
                ("residual", narrow_type.name(), narrow && activations),
                ("attention", "auto", narrow && activations),
                ("activation", "auto", activations),
            ];
            for (name, word, _) in wanted.into_iter().filter(|(.., wanted)| *wanted) {
                if !says(attrs, name) {
                    attrs.push((name.into(), Attr::Word(word.into())));
                }
            }
        }
        self
    }

    /// Parts the options of the pass from those of what stands beside it. Errors: the words of a usage error.
    pub(super) fn parts(attrs: &AttrMap) -> Result<EightBits, String> {
        let mut own = attrs.clone();
        let mut take = |name: &str| {
            let at = own.iter().position(|(n, _)| n == name)?;
            Some(own.remove(at).1)
        };
        let mut narrow = |name: &str| match take(name) {
            None => Ok(None),
            Some(Attr::Word(word)) => match word.as_str() {
                "f32" => Ok(None),
                "bf16" => Ok(Some(DType::BF16)),
                "f16" => Ok(Some(DType::F16)),
                _ => Err(format!("`{name}` must be f32, bf16 or f16")),
            },
            Some(_) => Err(format!("`{name}` must be f32, bf16 or f16")),
        };
        let (rest, residual) = (narrow("rest")?, narrow("residual")?);
        if residual.is_some() && residual != rest {
            return Err("`residual` must be f32 or what `rest` is".into());
        }
        let attention = match take("attention") {
            None => Coded::None,
            Some(Attr::Word(word)) if word == "none" => Coded::None,
            Some(Attr::Word(word)) if word == "auto" => Coded::Auto,
            Some(attr) => match Kinds::take(&attr) {
                Some(kinds) => Coded::Kinds(kinds),
                None => return Err(format!("`attention` must be none, auto or {}, not `{attr}`", Kinds::EXPECTS)),
            },
        };
        let convolution = match take("convolution") {
            None => false,
            Some(Attr::Word(word)) if word == "none" || word == "e4m3" => word == "e4m3",
            Some(attr) => return Err(format!("`convolution` must be none or e4m3, not `{attr}`")),
        };
        Ok(EightBits { own, rest, residual, attention, convolution })
    }
}

/// Which attentions multiply codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coded {
    None,
    /// Those that the target is best at.
    Auto,
    Kinds(Kinds),
}

/// What the options of an 8-bit precision say.
pub(super) struct EightBits {
    /// Those of the pass for linear layers.
    pub own: AttrMap,
    /// What all other products compute in, if not f32.
    pub rest: Option<DType>,
    /// What the residual stream is rounded to, if it is.
    pub residual: Option<DType>,
    /// Which attentions multiply codes.
    pub attention: Coded,
    /// Whether convolutions do.
    pub convolution: bool,
}

impl FromStr for Precision {
    type Err = String;

    /// `f32`, `bf16`, `f16`, `fp8`, `fp8w`, `fp8{activation=token,exclude=["camera_head"]}`.
    fn from_str(text: &str) -> Result<Self, String> {
        let calls = parse_calls(text).map_err(|e| e.to_string())?;
        match <[_; 1]>::try_from(calls) {
            Ok([(name, attrs)]) => match (name.as_str(), attrs.is_empty()) {
                ("f32", true) => Ok(Self::F32),
                ("bf16", true) => Ok(Self::Bf16),
                ("f16", true) => Ok(Self::F16),
                ("f32" | "bf16" | "f16", false) => Err(format!("`{name}` takes no options")),
                ("fp8", _) => Ok(Self::Fp8(attrs)),
                ("fp8w", _) => Ok(Self::Fp8w(attrs)),
                _ => Err(format!("`{name}` is not a precision; there are f32, bf16, f16, fp8 and fp8w")),
            },
            Err(_) => Err(format!("`{text}` is not one of f32, bf16, f16, fp8 and fp8w")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8(_) => "fp8",
            Self::Fp8w(_) => "fp8w",
        })
    }
}

/// Which view the model takes as its reference, where it chooses one by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReferenceView {
    /// The model chooses, in f32.
    #[default]
    Auto,
    /// This view, counted from 0.
    View(usize),
}

impl FromStr for ReferenceView {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "first" => Ok(Self::View(0)),
            n => n.parse().map(Self::View).map_err(|_| format!("`{n}` is not auto, first or the number of a view")),
        }
    }
}

/// Some attentions of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The one with this number among its kind, in execution order from 0.
    Index(usize),
    /// Those with this text in their names.
    Name(String),
}

impl Layer {
    /// As an entry of the pass option `layers` or `except`.
    pub fn attr(&self) -> Attr {
        match self {
            Self::Index(index) => Attr::Dim((*index).into()),
            Self::Name(name) => Attr::Text(name.clone()),
        }
    }
}

/// `global=sla{keep=0.1}`, `global.3=dense`, `global.global_blocks.7.=dense`, `frame=dense`: what becomes of the
/// attentions of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionRule {
    /// Which kind.
    pub kind: AttentionKind,
    /// Which ones of the kind; all of them if not given.
    pub layer: Option<Layer>,
    /// The options of the pass `sla`; `None` leaves it dense.
    pub sla: Option<AttrMap>,
}

impl AttentionRule {
    /// The options of the pass `sla` that carry this rule out; `None` for dense.
    pub fn pass_options(&self) -> Option<AttrMap> {
        let mut attrs = self.sla.clone()?;
        attrs.push(("kind".into(), Attr::Word(self.kind.word().into())));
        if let Some(layer) = &self.layer {
            attrs.push(("layers".into(), Attr::List(vec![layer.attr()])));
        }
        Some(attrs)
    }
}

impl FromStr for AttentionRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (target, rewrite) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not KIND=dense or KIND=sla{{…}}, such as `global=sla{{keep=0.1}}`"))?;
        let (kind, layer) = match target.trim().split_once('.') {
            Some((_, "")) => return Err(format!("`{target}` names no layer")),
            Some((kind, layer)) => (kind, Some(layer.parse().map_or_else(|_| Layer::Name(layer.into()), Layer::Index))),
            None => (target.trim(), None),
        };
        let kinds = AttentionKind::WORDS.iter().filter(|(_, k)| *k != AttentionKind::Unknown);
        let known: Vec<&str> = kinds.clone().map(|(w, _)| *w).collect();
        let kind = kinds
            .clone()
            .find(|(word, _)| *word == kind)
            .map(|(_, k)| *k)
            .ok_or_else(|| format!("`{kind}` is not a kind of attention; there are {}", known.join(", ")))?;
        let calls = parse_calls(rewrite).map_err(|e| e.to_string())?;
        match <[_; 1]>::try_from(calls) {
            Ok([(name, attrs)]) if name == "dense" && attrs.is_empty() => Ok(Self { kind, layer, sla: None }),
            Ok([(name, attrs)]) if name == "sla" => match attrs.iter().find(|(n, _)| n == "kind" || n == "layers") {
                Some((n, _)) => Err(format!("`{n}` stands before the equals sign: `{target}`")),
                None => Ok(Self { kind, layer, sla: Some(attrs) }),
            },
            _ => Err(format!("`{rewrite}` is neither dense nor sla{{…}}")),
        }
    }
}

/// Checks that what was asked for can go together. Every problem at once.
pub fn check(options: &Options) -> Result<()> {
    let mut problems = Vec::new();
    for bind in &options.bind {
        if options.bind.iter().filter(|b| b.symbol == bind.symbol).count() > 1 {
            problems.push(format!("`{0}` is bound twice; write `--bind {0}=N,N`", bind.symbol));
        }
    }
    problems.dedup();
    let said = !options.attention.is_empty() || options.precision != Precision::F32 || options.lora.is_some();
    if options.passes.is_some() && said {
        problems.push("`--passes` names every pass itself: write lora{…}, sla{…}, fp8{…} there".into());
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::all(crate::Kind::Usage, "compile.options", problems)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_multiply() {
        let bind = |text: &str| text.parse::<Bind>().unwrap();
        let options = Options { bind: vec![bind("S=2,4"), bind("T=1, 3")], ..Options::default() };
        let entries: Vec<String> = options.entries().iter().map(|b| format!("{b:?}")).collect();
        assert_eq!(
            entries,
            [r#"{"S": 2, "T": 1}"#, r#"{"S": 2, "T": 3}"#, r#"{"S": 4, "T": 1}"#, r#"{"S": 4, "T": 3}"#]
        );
        assert_eq!(Options::default().entries(), [Bindings::new()]);
        for bad in ["S", "S=", "S=0", "=3", "S=2,x"] {
            assert!(bad.parse::<Bind>().is_err(), "{bad}");
        }
    }

    #[test]
    fn attention_rules_are_read() {
        let rule: AttentionRule = "global.3=sla{keep=0.1,block_k=16}".parse().unwrap();
        assert_eq!((rule.kind, rule.layer.clone()), (AttentionKind::Global, Some(Layer::Index(3))));
        let named: AttentionRule = "global.blocks.7.=sla{keep=0.1}".parse().unwrap();
        assert_eq!(named.layer, Some(Layer::Name("blocks.7.".into())));
        let options = lite3r_ir::passes::Options(rule.pass_options().unwrap());
        assert_eq!(options.to_string(), "{keep=0.1,block_k=16,kind=global,layers=[3]}");
        assert_eq!("frame=dense".parse::<AttentionRule>().unwrap().pass_options(), None);
        for (bad, says) in [
            ("global", "is not KIND=dense"),
            ("sideways=dense", "there are encoder, frame, global, camera"),
            ("global=spla{}", "neither dense nor sla"),
            ("global=sla{keep", "expected"),
            ("global=sla{kind=frame}", "before the equals sign"),
            ("unknown=dense", "not a kind"),
            ("global.=dense", "names no layer"),
        ] {
            let error = bad.parse::<AttentionRule>().unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn precisions_and_views_are_read() {
        assert_eq!(("bf16".parse(), "f16".parse()), (Ok(Precision::Bf16), Ok(Precision::F16)));
        assert!(matches!("fp8{activation=tensor}".parse(), Ok(Precision::Fp8(attrs)) if attrs.len() == 1));
        assert!("int8".parse::<Precision>().unwrap_err().contains("fp8w"));
        assert!("bf16{x=1}".parse::<Precision>().unwrap_err().contains("no options"));
        assert_eq!("first".parse(), Ok(ReferenceView::View(0)));
        assert!("last".parse::<ReferenceView>().is_err());
    }

    #[test]
    fn what_stands_beside_linear_layers_is_read_apart() {
        let parts = |text: &str| match text.parse() {
            Ok(Precision::Fp8(attrs)) => {
                Precision::parts(&attrs).map(|p| (p.own.len(), p.rest, p.residual, p.attention))
            }
            other => panic!("{other:?}"),
        };
        let (bf16, f16) = (Some(DType::BF16), Some(DType::F16));
        assert_eq!(parts("fp8{weight=row}"), Ok((1, None, None, Coded::None)));
        assert_eq!(parts("fp8{rest=bf16,activation=auto,residual=bf16}"), Ok((1, bf16, bf16, Coded::None)));
        assert_eq!(parts("fp8{rest=f16,residual=f32,attention=none}"), Ok((0, f16, None, Coded::None)));
        assert_eq!(parts("fp8{attention=global}"), Ok((0, None, None, Coded::Kinds(Kinds::Global))));
        assert_eq!(parts("fp8{attention=auto}"), Ok((0, None, None, Coded::Auto)));
        assert!(parts("fp8{residual=f16}").unwrap_err().contains("`residual`"));
        assert!(parts("fp8{rest=f64}").unwrap_err().contains("`rest`"));
        assert!(parts("fp8{attention=camera}").unwrap_err().contains("`attention`"));
        assert_eq!(parts("fp8{convolution=e4m3}"), Ok((0, None, None, Coded::None)));
        assert!(parts("fp8{convolution=yes}").unwrap_err().contains("`convolution`"));
    }

    #[test]
    fn contradictions_are_all_reported() {
        let options = Options {
            bind: vec!["S=2".parse().unwrap(), "S=3".parse().unwrap()],
            precision: Precision::Bf16,
            passes: Some("dce".into()),
            ..Options::default()
        };
        assert_eq!(check(&options).unwrap_err().problems.len(), 2);
        assert!(check(&Options::default()).is_ok());
    }
}
