//! Which scenes are for training, for choosing, and for the last test, as the publishers of each data set said.
//!
//! Laws: BlendedMVS, github.com/YoYo000/BlendedMVS (`project_lists/BlendedMVS_training.txt`, `validation_list.txt`; CC
//! BY 4.0); DTU, the lists of MVSNet; DTU-64, the 13 scans on which Depth Anything 3 reports poses.

use crate::{Error, Result};

lite3r_ir::word_enum! {
    /// What scenes are for. No scene is for two things.
    #[derive(PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Split {
        /// Weights are fitted to them.
        Train = "train",
        /// Settings are chosen by them.
        Val = "val",
        /// Reported results are measured on them.
        Test = "test",
    }
}

impl std::fmt::Display for Split {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.word())
    }
}

impl std::str::FromStr for Split {
    type Err = Error;

    /// Errors: `data.split`.
    fn from_str(text: &str) -> Result<Self> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        let wrong = || Error::usage("data.split", format!("`{text}` is no split; there are train, val and test"));
        found.map(|(_, split)| *split).ok_or_else(wrong)
    }
}

/// The official scenes of BlendedMVS: 106 for training, 7 for validation, none for the test.
pub fn blendedmvs(split: Split) -> Vec<&'static str> {
    match split {
        Split::Train => include_str!("lists/blendedmvs_training.txt").split_whitespace().collect(),
        Split::Val => include_str!("lists/blendedmvs_validation.txt").split_whitespace().collect(),
        Split::Test => Vec::new(),
    }
}

/// What an official scene of BlendedMVS is for; `None` for every other name.
pub fn blendedmvs_split(name: &str) -> Option<Split> {
    [Split::Train, Split::Val].into_iter().find(|split| blendedmvs(*split).contains(&name))
}

/// Training scans of DTU.
pub const DTU_TRAIN: [u32; 79] = [
    2, 6, 7, 8, 14, 16, 18, 19, 20, 22, 30, 31, 36, 39, 41, 42, 44, 45, 46, 47, 50, 51, 52, 53, 55, 57, 58, 60, 61, 63,
    64, 65, 68, 69, 70, 71, 72, 74, 76, 83, 84, 85, 87, 88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99, 100, 101, 102,
    103, 104, 105, 107, 108, 109, 111, 112, 113, 115, 116, 119, 120, 121, 122, 123, 124, 125, 126, 127, 128,
];

/// Validation scans of DTU.
pub const DTU_VAL: [u32; 18] = [3, 5, 17, 21, 28, 35, 37, 38, 40, 43, 56, 59, 66, 67, 82, 86, 106, 117];

/// Test scans of DTU.
pub const DTU_TEST: [u32; 22] =
    [1, 4, 9, 10, 11, 12, 13, 15, 23, 24, 29, 32, 33, 34, 48, 49, 62, 75, 77, 110, 114, 118];

/// The scans of DTU-64, on which poses of 64 views are reported. [`dtu_split`] tells that eight of them are training
/// scans and two are validation scans: what was fitted to those must not be scored on them without saying so.
pub const DTU64: [u32; 13] = [24, 37, 40, 55, 63, 65, 69, 83, 97, 105, 114, 118, 122];

/// The scans of a split of DTU.
pub fn dtu(split: Split) -> &'static [u32] {
    match split {
        Split::Train => &DTU_TRAIN,
        Split::Val => &DTU_VAL,
        Split::Test => &DTU_TEST,
    }
}

/// What a scan of DTU is for; `None` for those that stand in no list.
pub fn dtu_split(scan: u32) -> Option<Split> {
    Split::WORDS.iter().map(|(_, split)| *split).find(|split| dtu(*split).contains(&scan))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn lists_have_their_published_lengths_and_share_nothing() {
        let (train, val) = (blendedmvs(Split::Train), blendedmvs(Split::Val));
        assert_eq!((train.len(), val.len()), (106, 7));
        let all: BTreeSet<&str> = train.iter().chain(&val).copied().collect();
        assert_eq!(all.len(), 113);
        assert!(all.iter().all(|name| name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit())));
        assert_eq!(blendedmvs_split("5a6400933d809f1d8200af15"), Some(Split::Val));
        assert_eq!(blendedmvs_split("anything"), None);
        let scans: BTreeSet<u32> = DTU_TRAIN.into_iter().chain(DTU_VAL).chain(DTU_TEST).collect();
        assert_eq!(scans.len(), 79 + 18 + 22);
        assert_eq!(dtu_split(25), None, "in no list");
    }

    #[test]
    fn dtu64_is_mostly_training_scans() {
        let of = |split| DTU64.into_iter().filter(|scan| dtu_split(*scan) == Some(split)).collect::<Vec<_>>();
        assert_eq!(of(Split::Train), [55, 63, 65, 69, 83, 97, 105, 122]);
        assert_eq!(of(Split::Val), [37, 40]);
        assert_eq!(of(Split::Test), [24, 114, 118]);
    }

    #[test]
    fn words_are_read() {
        assert_eq!("val".parse::<Split>().unwrap(), Split::Val);
        assert_eq!("validation".parse::<Split>().unwrap_err().code, "data.split");
    }
}
