//! Plan files: shared weights, weights by reference, and every kind of damage.

use std::{path::PathBuf, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::weights::MappedFile;

const SMALL: &str = "graph @small(%x: f32[4,8]) -> (y: f32[4,3]) {
  param $w: f32[8,3], $scale: f32[3]
  %t = transpose($w) {perm=[1,0]} : f32[3,8]
  %p = linear(%x, %t) : f32[4,3]
  %y = mul(%p, $scale) : f32[4,3]
  return y=%y
}";

struct Saved {
    folder: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
}

fn saved(storage: Storage, weights: &Weights) -> Saved {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.l3r");
    plan(&graph(SMALL), weights).save(&path, storage).unwrap();
    Saved { bytes: std::fs::read(&path).unwrap(), folder, path }
}

impl Saved {
    fn open_as(&self, bytes: &[u8]) -> Result<Plan, crate::Error> {
        std::fs::write(&self.path, bytes).unwrap();
        Plan::open(&self.path, &OpenOptions::default())
    }

    fn code(&self, bytes: &[u8]) -> &'static str {
        self.open_as(bytes).map(|_| "opened").unwrap_or_else(|e| e.code)
    }

    /// The file with another header, sound as far as hashes go.
    fn with_header(&self, change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
        let length = u64::from_le_bytes(self.bytes[12..20].try_into().unwrap()) as usize;
        let data = (20 + length + 32).next_multiple_of(256);
        let mut header = serde_json::from_slice(&self.bytes[20..20 + length]).unwrap();
        change(&mut header);
        let header = serde_json::to_vec(&header).unwrap();
        let mut bytes = self.bytes[..12].to_vec();
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header);
        bytes.extend(blake3::hash(&bytes).as_bytes());
        bytes.resize(bytes.len().next_multiple_of(256), 0);
        bytes.extend(&self.bytes[data..]);
        bytes
    }
}

fn small_weights() -> Weights {
    weights_for(&[&graph(SMALL)])
}

#[test]
fn every_kind_of_damage_has_its_code() {
    let saved = saved(Storage::Embedded, &small_weights());
    let good = &saved.bytes;
    assert_eq!(saved.code(good), "opened");
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    assert_eq!(saved.code(&changed(0, b'X')), "plan.magic");
    assert_eq!(saved.code(b"# a text\n"), "plan.magic");
    assert_eq!(saved.code(b""), "plan.magic");
    assert_eq!(saved.code(&changed(8, 2)), "plan.version");
    assert_eq!(saved.code(&changed(40, b'~')), "plan.corrupt");
    let last = good.len() - 256;
    assert_eq!(saved.code(&changed(last, good[last] ^ 1)), "plan.corrupt", "a weight");
    assert_eq!(saved.code(&changed(good.len() - 1, 1)), "plan.corrupt", "the padding");
    assert_eq!(saved.code(&[good.as_slice(), b"x"].concat()), "plan.trailing");
    for length in [3, 8, 11, 19, 30, good.len() / 2, good.len() - 1] {
        assert_eq!(saved.code(&good[..length]), "plan.truncated", "{length}");
    }
    let error = Plan::open(&saved.folder.path().join("none.l3r"), &OpenOptions::default()).unwrap_err();
    assert_eq!(error.code, "file.io");
}

#[test]
fn headers_that_lie_are_refused() {
    use serde_json::json;
    let saved = saved(Storage::Embedded, &small_weights());
    assert_eq!(saved.code(&saved.with_header(|_| {})), "opened");
    let refused = |code: &str, change: &dyn Fn(&mut serde_json::Value)| {
        assert_eq!(saved.code(&saved.with_header(change)), code);
    };
    refused("plan.header", &|h| h["weights"][0]["bytes"] = json!(u64::MAX));
    refused("plan.header", &|h| h["weights"][0]["offset"] = json!(256));
    refused("plan.header", &|h| h["surprise"] = json!(1));
    refused("plan.header", &|h| h["entries"][0]["steps"][0]["op"] = json!("no_such_op"));
    refused("plan.header", &|h| h["entries"][0]["buffers"][0]["ty"] = json!("f32[,"));
    refused("plan.check", &|h| h["entries"][0]["buffers"][0]["ty"] = json!("f32[9223372036854775807,3]"));
    refused("plan.check", &|h| h["entries"][0]["buffers"][0]["ty"] = json!("f32[-4,8]"));
    refused("plan.check", &|h| h["entries"][0]["buffers"][0]["place"] = json!({"arena": u64::MAX - 255}));
    refused("plan.check", &|h| h["entries"][0]["buffers"][0]["place"] = json!({"arena": 3}));
    refused("plan.check", &|h| h["entries"][0]["buffers"][0]["place"] = json!({"weight": 77}));
    refused("plan.check", &|h| h["entries"][0]["steps"][0]["operands"][0] = json!(99));
    refused("plan.check", &|h| h["entries"][0]["outputs"][0]["buffer"] = json!(4_000_000_000u32));
    refused("plan.check", &|h| h["entries"][0]["arena_bytes"] = json!(0));
    refused("plan.check", &|h| h["entries"][0]["steps"][0]["scratch"] = json!({"offset": u64::MAX, "bytes": 2}));
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        let cpu = Options { device: Some("cpu".into()), ..Options::default() };
        Session::new(saved.open_as(&saved.with_header(change)).unwrap(), &cpu).map(|_| ()).unwrap_err().code
    };
    assert_eq!(open(&|h| h["target"] = json!("cuda:sm_90a")), "plan.target");
    assert_eq!(open(&|h| h["entries"][0]["steps"][0]["kernel"] = json!("linear.magic")), "plan.kernel");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_flipped_byte_goes_unseen(at in 0.0f64..1.0, to in 1u8..=255) {
        let saved = saved(Storage::Embedded, &small_weights());
        let mut bytes = saved.bytes.clone();
        let at = (at * bytes.len() as f64) as usize;
        bytes[at] ^= to;
        prop_assert!(saved.open_as(&bytes).is_err(), "byte {}", at);
    }

    #[test]
    fn no_header_makes_it_panic(at in 0.0f64..1.0, to in prop::sample::select(&b"0123456789-[]{}\",:ef"[..])) {
        // With a hash that fits, so that everything behind the hash sees the damage.
        let saved = saved(Storage::Embedded, &small_weights());
        let length = u64::from_le_bytes(saved.bytes[12..20].try_into().unwrap()) as usize;
        let mut bytes = saved.bytes.clone();
        bytes[20 + (at * length as f64) as usize] = to;
        let hash = blake3::hash(&bytes[..20 + length]);
        bytes[20 + length..52 + length].copy_from_slice(hash.as_bytes());
        let session = saved.open_as(&bytes).and_then(|plan| Session::new(plan, &Options::default()));
        // An error is as good as a result.
        let _ = session.and_then(|mut session| session.run(0, &inputs_for(&graph(SMALL))));
    }
}

/// Weights in one file, as a checkpoint has them.
fn checkpoint(folder: &std::path::Path) -> Weights {
    let path = folder.join("model.bin");
    let (w, scale) = (Tensor::wave(DType::F32, &[8, 3], 1), Tensor::wave(DType::F32, &[3], 2));
    // One byte in front, so that nothing is aligned.
    std::fs::write(&path, [&[0][..], w.bytes(), scale.bytes()].concat()).unwrap();
    let file = Arc::new(MappedFile::open(&path).unwrap());
    let mut weights = Weights::default();
    let weight = |ty: &str, start, end| Weight::mapped(ty.parse().unwrap(), file.clone(), start..end).unwrap();
    weights.insert("w", weight("f32[8,3]", 1, 97));
    weights.insert("scale", weight("f32[3]", 97, 109));
    weights
}

#[test]
fn weights_by_reference_are_found_and_proved() {
    let elsewhere = tempfile::tempdir().unwrap();
    let weights = checkpoint(elsewhere.path());
    let saved = saved(Storage::ByReference, &weights);
    let open = |places: &[PathBuf]| {
        let options = OpenOptions { weights: places.to_vec(), verify: true };
        Plan::open(&saved.path, &options).map_err(|e| e.code)
    };
    assert_eq!(open(&[]).unwrap_err(), "plan.weight_file");
    let file = elsewhere.path().join("model.bin");
    let expected = reference(&graph(SMALL), &weights);
    for place in [elsewhere.path().to_path_buf(), file.clone()] {
        let opened = open(&[place]).unwrap();
        let outputs = session(opened).run(0, &inputs_for(&graph(SMALL))).unwrap();
        assert_close(&outputs, &expected, 1e-6);
    }
    let copy = saved.folder.path().join("model.bin");
    std::fs::copy(&file, &copy).unwrap();
    open(&[]).unwrap();
    let good = std::fs::read(&copy).unwrap();
    std::fs::write(&copy, &good[..good.len() - 1]).unwrap();
    assert_eq!(open(&[]).unwrap_err(), "plan.weight_file");
    std::fs::write(&copy, [&good[..108], &[good[108] ^ 1]].concat()).unwrap();
    assert_eq!(open(&[]).unwrap_err(), "plan.weight_hash");
    let outside = saved.with_header(|h| {
        let weights = h["weights"].as_array_mut().unwrap();
        weights.iter_mut().for_each(|w| {
            if w["file"].is_string() {
                w["file"] = serde_json::json!("../model.bin");
            }
        });
    });
    assert_eq!(saved.code(&outside), "plan.weight_file");
}

#[test]
fn entries_share_what_they_compute_alike() {
    let other = SMALL.replace("f32[4,", "f32[7,");
    let graphs = [graph(SMALL), graph(&other)];
    let weights = small_weights();
    let sources = graphs
        .iter()
        .zip([4, 7])
        .map(|(graph, n)| EntrySource { bindings: Bindings::from([("N".to_string(), n)]), graph: graph.clone() });
    let plan = build(&sources.collect::<Vec<_>>(), &weights, &Cpu, Meta::default()).unwrap();
    let names: Vec<&str> = plan.header().weights.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names, ["scale", "transpose(w)"]);
    let mut session = session(plan);
    for graph in &graphs {
        let inputs = inputs_for(graph);
        let entry = session.entry_for(&inputs).unwrap();
        assert_close(&session.run(entry, &inputs).unwrap(), &reference(graph, &weights), 1e-6);
    }
    let wrong = BTreeMap::from([("x".to_string(), Tensor::wave(DType::F32, &[5, 8], 0))]);
    insta::assert_snapshot!(session.entry_for(&wrong).unwrap_err());
}
