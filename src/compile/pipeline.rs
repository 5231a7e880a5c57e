//! Which passes run, as text.

use lite3r_ir::{
    Bindings,
    attr::{Attr, AttrMap},
    passes::{
        self, Options as PassOptions, Pass,
        pipeline::{Selected, select},
    },
};

use super::options::{Coded, Layer, Options, Precision, ReferenceView};
use crate::{Error, Result};

/// Before symbols are bound.
pub const RECOGNITION: &str = "\
    fold,canonicalize,cse,dce,layer_norm,gelu,silu,rope,linear,attention,split_heads,merge_heads,dce,attention_kinds";

/// After they are bound; `specialize` stands before it.
pub const BOUND: &str = "\
    fold,canonicalize,cse,dce,layer_norm,gelu,silu,rope,linear,attention,split_heads,merge_heads,\
    patch_conv,transposed_conv,dpt_resize,dce,layer_scale,residual";

/// Exact rewrites, ahead of those that change numbers. What a rewrite replaced still reads its operands until `dce`.
pub const EXACT: &str = "resize_after_conv1x1,dce,fold_layer_norm,dce,fold_layer_scale,cse,dce";

/// Epilogues into products, before precisions decide what a product is.
pub const FUSION: &str = "fuse,layout,canonicalize,cse,dce";

/// At the end.
pub const FINISH: &str = "fuse_quantize,fuse_self_attention,fuse_heads,fuse_merge,fuse_pointwise,join_slices,pad_products,cse,dce,\
     fuse_rectified,dce";

/// Full resolution fills a device with one frame.
pub const LARGE_FRAMES: &str = "frame_tiles{frames=1,bytes=33554432}";

/// What runs on the graph with its symbols.
pub fn recognition(options: &Options) -> Result<Vec<Selected>> {
    if options.passes.is_some() {
        return Ok(Vec::new());
    }
    let mut selected = named(RECOGNITION)?;
    if let Some(axis) = options.views_axis {
        for s in selected.iter_mut().filter(|s| s.pass.name == "attention_kinds") {
            s.options = PassOptions::default().with("views_axis", axis);
        }
    }
    Ok(selected)
}

/// What binds symbols and recognises what needed sizes.
pub fn binding(bindings: &Bindings, options: &Options) -> Result<Vec<Selected>> {
    let sizes: AttrMap = bindings.iter().map(|(s, n)| (s.clone(), Attr::Dim((*n).into()))).collect();
    let mut selected = vec![Selected { pass: &passes::specialize::SPECIALIZE, options: PassOptions(sizes) }];
    if options.passes.is_none() {
        selected.extend(named(BOUND)?);
        if let ReferenceView::View(view) = options.reference_view {
            let options = PassOptions::default().with("view", view);
            selected.push(Selected { pass: &passes::reference_view::REFERENCE_VIEW, options });
            selected.extend(named("fold,dce")?);
        }
    }
    Ok(selected)
}

/// Images with the channels of a pixel side by side, and what that leaves to move.
pub const CHANNELS_LAST: &str = "channels_last,layout,dce,late_slices,dce";

/// What rewrites and fuses.
pub fn rewriting(options: &Options) -> Result<Vec<Selected>> {
    if let Some(text) = &options.passes {
        return named(text);
    }
    let mut selected = Vec::new();
    if let Some(attrs) = &options.lora {
        // Trained beside weights into which nothing had been folded.
        selected.push(with("lora", attrs)?);
    }
    selected.extend(named(EXACT)?);
    let rules = effective(options);
    for rule in &rules {
        let targets: AttrMap =
            rule.iter().filter(|(n, _)| ["kind", "layers", "except"].contains(&n.as_str())).cloned().collect();
        let raw = rule.iter().any(|(n, a)| n == "layout" && *a == Attr::Word("raw".into()));
        if !raw {
            selected.push(Selected { pass: &passes::token_layout::TOKEN_LAYOUT, options: PassOptions(targets) });
        }
    }
    for rule in rules {
        let options = rule.into_iter().filter(|(n, _)| n != "layout").collect();
        selected.push(Selected { pass: &passes::sla::SLA, options: PassOptions(options) });
    }
    if options.heads.channels_last {
        selected.extend(named(CHANNELS_LAST)?);
    }
    selected.extend(named(FUSION)?);
    match &options.precision {
        Precision::F32 => {}
        Precision::Bf16 => selected.extend(named("bf16")?),
        Precision::F16 => selected.extend(named("f16")?),
        Precision::Fp8(attrs) => selected.extend(eight_bits("fp8", attrs, options)?),
        Precision::Fp8w(attrs) => selected.extend(eight_bits("fp8w", attrs, options)?),
    }
    selected.extend(named(FINISH)?);
    if let Some(heads) = options.joint_heads {
        selected.extend(named(&format!("fuse_qkv{heads},cse,dce"))?);
    }
    if let Some(frames) = options.heads.frames {
        selected.extend(named(&format!("frame_tiles{{frames={frames}}},{LARGE_FRAMES},dce"))?);
    }
    Ok(selected)
}

/// The options of `sla` for every rule that a later one does not replace.
fn effective(options: &Options) -> Vec<AttrMap> {
    let rules = &options.attention;
    let replaced = |i: usize| {
        let rule = &rules[i];
        rules[i + 1..]
            .iter()
            .any(|later| later.kind == rule.kind && (later.layer.is_none() || later.layer == rule.layer))
    };
    let mut out = Vec::new();
    for (i, rule) in rules.iter().enumerate().filter(|(i, _)| !replaced(*i)) {
        let Some(mut attrs) = rule.pass_options() else { continue };
        // A rule for all layers leaves out those that later rules name.
        let named =
            rules[i + 1..].iter().filter(|later| later.kind == rule.kind).filter_map(|later| later.layer.as_ref());
        let except: Vec<Attr> = named.map(Layer::attr).collect();
        if rule.layer.is_none() && !except.is_empty() {
            attrs.push(("except".into(), Attr::List(except)));
        }
        out.push(attrs);
    }
    out
}

fn with(name: &str, attrs: &AttrMap) -> Result<Selected> {
    let mut selected = named(name)?;
    let mut one = selected.remove(0);
    one.options = PassOptions(attrs.clone());
    Ok(one)
}

/// A pass that makes linear layers FP8, and `bf16` or `f16` for the rest where that is asked for. Norms join their quantisation
/// before, so that they read the residual stream in f32. Convolutions become FP8 behind that: they quantise what is
/// narrow already.
fn eight_bits(pass: &str, attrs: &AttrMap, options: &Options) -> Result<Vec<Selected>> {
    let parts = Precision::parts(attrs).map_err(|problem| Error::usage("compile.options", problem))?;
    let mut selected = vec![with(pass, &parts.own)?];
    if let Some(narrow) = parts.rest {
        selected.extend(named(&format!("fuse_quantize,cse,dce,{}", narrow.name()))?);
    }
    if let Some(narrow) = parts.residual {
        selected.extend(named(&format!("{}_residual,dce", narrow.name()))?);
    }
    if parts.convolution {
        selected.extend(named("fp8_convolution,dce")?);
    }
    match (parts.attention, options.coded_attention) {
        (Coded::Kinds(kinds), _) => selected.extend(named(&format!("fp8_attention{{kind={}}},dce", kinds.word()))?),
        (Coded::Auto, Some(coded)) => selected.extend(named(&format!("fp8_attention{coded},dce"))?),
        (Coded::Auto, None) | (Coded::None, _) => {}
    }
    Ok(selected)
}

/// The passes that a text names.
pub fn named(text: &str) -> Result<Vec<Selected>> {
    select(text, passes::ALL).map_err(|e| Error::usage("compile.passes", e.to_string()))
}

/// Every pass that there is, in the order of its table.
pub fn table() -> &'static [&'static Pass] {
    passes::ALL
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(selected: &[Selected]) -> Vec<String> {
        selected.iter().map(|s| format!("{s:?}")).collect()
    }

    #[test]
    fn every_named_pass_exists() {
        for text in [
            RECOGNITION,
            BOUND,
            EXACT,
            FUSION,
            FINISH,
            LARGE_FRAMES,
            "bf16,f16,fp8,fp8w,token_layout,sla,specialize,reference_view",
        ] {
            named(text).unwrap();
        }
    }

    #[test]
    fn later_rules_win() {
        let rule = |text: &str| text.parse().unwrap();
        let options = Options {
            attention: vec![
                rule("global=sla{keep=0.3}"),
                rule("global=sla{keep=0.1}"),
                rule("global.2=dense"),
                rule("frame=sla{keep=0.5,layout=raw}"),
                rule("frame=dense"),
            ],
            ..Options::default()
        };
        let shown: Vec<String> = effective(&options).into_iter().map(|a| PassOptions(a).to_string()).collect();
        assert_eq!(shown, ["{keep=0.1,kind=global,except=[2]}"]);
        let all = names(&rewriting(&options).unwrap());
        assert!(all.contains(&"token_layout{kind=global,except=[2]}".to_string()), "{all:?}");
        assert!(all.contains(&"sla{keep=0.1,kind=global,except=[2]}".to_string()), "{all:?}");
    }

    #[test]
    fn own_passes_replace_the_usual_ones() {
        let options = Options { passes: Some("cse,dce".into()), ..Options::default() };
        assert!(recognition(&options).unwrap().is_empty());
        let bindings = Bindings::from([("S".to_string(), 2)]);
        assert_eq!(names(&binding(&bindings, &options).unwrap()), ["specialize{S=2}"]);
        assert_eq!(names(&rewriting(&options).unwrap()), ["cse", "dce"]);
        let error = rewriting(&Options { passes: Some("nope".into()), ..Options::default() }).unwrap_err();
        assert_eq!(error.code, "compile.passes");
    }
}
