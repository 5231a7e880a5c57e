//! What can be checked without a device: every case of every operation lowers to modules that compile for every
//! architecture, without spilling registers, and whose machine code is what rows and runtime rely on.

use std::collections::BTreeMap;

use lite3r_ir::{Op, Tensor, ValueType};
use rayon::prelude::*;

use super::{
    launch::Module,
    sass::{self, op},
    *,
};

const ARCHES: [Arch; 3] = [Arch::Sm90a, Arch::Sm89, Arch::Sm80];

/// An operation with the types of its operands.
pub type Typed = (Op, Vec<ValueType>);

/// What a row lowers a request to: its name with the request, and where the kernels are.
struct Use {
    row: &'static str,
    request: String,
    kernels: Vec<(Module, &'static str)>,
}

impl Use {
    /// Of requests on all rows or those that `variant` names.
    fn all(requests: &[(String, Typed)], variant: &str, arch: Arch) -> Vec<Self> {
        let mut uses = Vec::new();
        for (name, (op, operands)) in requests {
            let results = op.infer(operands).expect("requests are well-typed");
            let request = Request { op, operands, results: &results };
            for kernel in rows().filter(|k| k.op == op.name() && k.name.ends_with(variant)) {
                let Ok(lowered) = (kernel.lower)(&request, arch) else { continue };
                let kernels = lowered.launches.into_iter().map(|l| (l.module, l.function)).collect();
                uses.push(Self { row: kernel.name, request: name.clone(), kernels });
            }
        }
        uses
    }

    /// Rows are named after the instructions that they promise.
    fn fault(&self, cubins: &BTreeMap<&Module, Vec<u8>>) -> Option<String> {
        let wanted: &[u16] = match self.row.rsplit('.').next() {
            Some(variant) if variant.ends_with("wgmma") => &op::WGMMA,
            Some(variant) if variant.ends_with("mma") => &op::MMA,
            _ => return None,
        };
        let promised = |(module, function): &(Module, &str)| {
            let kernels = sass::kernels(cubins.get(module)?)?;
            Some(kernels.iter().any(|k| k.name == *function && k.count(wanted) > 0))
        };
        let kept = self.kernels.iter().any(|k| promised(k) == Some(true));
        (!kept).then(|| format!("{} {}: no instruction of tensor cores", self.row, self.request))
    }
}

/// What a compiled module must not have: spills, products that wait for one another, on Hopper kernels that touch
/// memory before they wait for the launch in front, and in kernels of `wgmma` any local memory.
fn faults(made: &nvrtc::Cubin, arch: Arch) -> Vec<String> {
    let spilled = |l: &&str| l.contains("spill") && !l.contains(", 0 bytes spill stores, 0 bytes spill loads");
    let serialised = |l: &&str| (7510..=7515).any(|code| l.contains(&format!("C{code}")));
    let mut faults: Vec<String> =
        made.log.lines().filter(|l| spilled(l) || serialised(l)).map(str::to_string).collect();
    let Some(kernels) = sass::kernels(&made.bytes) else { return vec!["no ELF file".into()] };
    for kernel in kernels {
        if arch == Arch::Sm90a && !kernel.waits() {
            faults.push(format!("`{}` touches memory before wait_for_launch_before()", kernel.name));
        }
        if kernel.count(&op::WGMMA) > 0 && kernel.count(&op::LOCAL) > 0 {
            faults.push(format!("`{}` has local memory", kernel.name));
        }
    }
    faults
}

fn assert_compile(requests: &[(String, Typed)], variant: &str) {
    if !nvrtc::is_present() {
        assert!(std::env::var_os("LITE3R_REQUIRE_NVRTC").is_none(), "NVRTC was asked for and is not there");
        eprintln!("skipped: NVRTC is not installed; see cuda/README.md");
        return;
    }
    for arch in ARCHES {
        let uses = Use::all(requests, variant, arch);
        let mut modules: BTreeMap<&Module, &Use> = BTreeMap::new();
        uses.iter().for_each(|u| u.kernels.iter().for_each(|(module, _)| _ = modules.entry(module).or_insert(u)));
        let made: Vec<_> = modules.par_iter().map(|(module, _)| (*module, nvrtc::compile(module, arch))).collect();
        let (mut cubins, mut wrong) = (BTreeMap::new(), Vec::new());
        for (module, made) in made {
            let Use { row, request, .. } = modules[module];
            let found = match &made {
                Ok(made) => faults(made, arch),
                Err(error) => vec![error.to_string()],
            };
            wrong.extend(found.into_iter().map(|fault| format!("{row} {request}: {}: {fault}", module.key())));
            cubins.extend(made.ok().map(|made| (module, made.bytes)));
        }
        wrong.extend(uses.iter().filter_map(|u| u.fault(&cubins)));
        println!("{}: {} modules", arch.name(), modules.len());
        assert!(wrong.is_empty(), "{}: {}", arch.name(), wrong.join("\n"));
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
fn every_module_compiles_as_it_must() {
    let cases = Op::all_cases().into_iter().map(|case| {
        let operands = case.inputs.iter().map(Tensor::value_type).collect();
        (case.name.to_string(), (case.op, operands))
    });
    assert_compile(&cases.collect::<Vec<_>>(), "");
}

#[test]
fn tallies_compile() {
    if nvrtc::is_present() {
        for (arch, dtype) in ARCHES.into_iter().flat_map(|arch| DType::ALL.iter().map(move |dtype| (arch, *dtype))) {
            let made = dtype.is_float().then(|| nvrtc::compile(&tally(dtype), arch).expect("it compiles"));
            let found = made.map_or(Vec::new(), |made| faults(&made, arch));
            assert!(found.is_empty(), "{} {dtype:?}: {found:?}", arch.name());
        }
    }
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
