//! What can be held against the reference without a device: every case of every operation lowers to modules that
//! compile for every architecture, without spilling registers.

use std::collections::BTreeMap;

use lite3r_ir::{Op, Tensor, ValueType};
use rayon::prelude::*;

use super::{launch::Module, *};

const ARCHES: [Arch; 3] = [Arch::Sm90a, Arch::Sm89, Arch::Sm80];

/// An operation with the types of its operands.
pub type Typed = (Op, Vec<ValueType>);

/// The modules of requests, each with the first request that needs it, from all rows or those that `variant` names.
fn modules(requests: &[(String, Typed)], variant: &str, arch: Arch) -> BTreeMap<Module, String> {
    let mut modules = BTreeMap::new();
    for (user, (op, operands)) in requests {
        let results = op.infer(operands).expect("requests are well-typed");
        let request = Request { op, operands, results: &results };
        for kernel in rows().filter(|k| k.op == op.name() && k.name.ends_with(variant)) {
            let Ok(lowered) = (kernel.lower)(&request, arch) else { continue };
            for launch in lowered.launches {
                modules.entry(launch.module).or_insert_with(|| format!("{} {user}", kernel.name));
            }
        }
    }
    modules
}

fn assert_compile(requests: &[(String, Typed)], variant: &str) {
    if !nvrtc::is_present() {
        assert!(std::env::var_os("LITE3R_REQUIRE_NVRTC").is_none(), "NVRTC was asked for and is not there");
        eprintln!("skipped: NVRTC is not installed; see cuda/README.md");
        return;
    }
    for arch in ARCHES {
        let modules: Vec<_> = modules(requests, variant, arch).into_iter().collect();
        let faults: Vec<String> = modules
            .par_iter()
            .filter_map(|(module, user)| match nvrtc::compile(module, arch) {
                Err(error) => Some(format!("{user}: {error}")),
                Ok(made) => {
                    let spilled =
                        |l: &&str| l.contains("spill") && !l.contains(", 0 bytes spill stores, 0 bytes spill loads");
                    let serialised =
                        |l: &&str| ["C7510", "C7511", "C7512", "C7514", "C7515"].iter().any(|c| l.contains(c));
                    let line = made.log.lines().find(|l| spilled(l) || serialised(l))?;
                    Some(format!("{user}: {}: {line}", module.key()))
                }
            })
            .collect();
        println!("{}: {} modules", arch.name(), modules.len());
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}

/// Asserts that what rows named `….variant` lower these requests to compiles as everything must. For shapes that cases
/// are too small for.
pub fn compiles(requests: &[Typed], variant: &str) {
    let named: Vec<_> =
        requests.iter().map(|(op, types)| (format!("{types:?}"), (op.clone(), types.clone()))).collect();
    assert_compile(&named, variant);
}

#[test]
fn every_module_compiles_without_spills() {
    let cases = Op::all_cases().into_iter().map(|case| {
        let operands = case.inputs.iter().map(Tensor::value_type).collect();
        (case.name.to_string(), (case.op, operands))
    });
    assert_compile(&cases.collect::<Vec<_>>(), "");
}

#[test]
fn rows_are_named_once_and_after_operations() {
    let mut names = std::collections::HashSet::new();
    for kernel in rows() {
        assert!(names.insert(kernel.name), "{} twice", kernel.name);
        assert_eq!(kernel.name.split('.').next(), Some(kernel.op));
        assert!(Op::NAMES.contains(&kernel.op), "{} computes no operation", kernel.name);
    }
}
