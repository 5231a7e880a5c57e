//! Numeric arrays of MATLAB's MAT-files, version 5, as scanned data sets ship them.
//!
//! Law: MathWorks, "MAT-File Format": a header of 128 bytes, then elements of a type, a size and data padded to eight
//! bytes; small ones carry up to four bytes inside the tag. Arrays may be deflated. Cells, structures, text, sparse and
//! complex arrays are passed over.

use std::{collections::BTreeMap, io::Read, path::Path};

use crate::{Error, Result};

/// An array, in MATLAB's order: the first index runs fastest.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its elements; integers up to 2⁵³ are exact.
    pub values: Vec<f64>,
}

/// Reads every numeric and logical array of a file, by name. Errors: `file.io`, `eval.mat` for files of another
/// version, cut short, or that contradict themselves.
pub fn read(path: &Path) -> Result<BTreeMap<String, Array>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot be read", &e))?;
    parse(&bytes).map_err(|problem| Error::bad_file("eval.mat", format!("{}: {problem}", path.display())))
}

/// A file that holds these arrays: doubles, not deflated.
pub fn to_bytes(arrays: &BTreeMap<String, Array>) -> Vec<u8> {
    let mut out = format!("{:<124}", "MATLAB 5.0 MAT-file").into_bytes();
    out.extend(0x0100u16.to_le_bytes());
    out.extend(b"IM");
    for (name, array) in arrays {
        let mut body = Vec::new();
        put(&mut body, UINT32, &[6u32.to_le_bytes(), [0; 4]].concat());
        put(&mut body, INT32, &array.shape.iter().flat_map(|d| (*d as u32).to_le_bytes()).collect::<Vec<_>>());
        put(&mut body, INT8, name.as_bytes());
        put(&mut body, DOUBLE, &array.values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        put(&mut out, MATRIX, &body);
    }
    out
}

const INT8: u32 = 1;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;

fn put(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend(kind.to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Array>, String> {
    let big = match bytes.get(126..128) {
        Some(b"IM") => false,
        Some(b"MI") => true,
        _ => return Err("is not a MAT-file of version 5 (MATLAB's `-v7.3` files are HDF5: save with `-v7`)".into()),
    };
    let mut arrays = BTreeMap::new();
    let mut elements = Elements { bytes: &bytes[128..], big };
    while let Some((kind, data)) = elements.next()? {
        let mut inflated = Vec::new();
        let (kind, data) = match kind {
            COMPRESSED => {
                // No array is larger than its own tag says, so a bomb is cut short.
                let mut zlib = flate2::read::ZlibDecoder::new(data);
                let mut tag = [0; 8];
                zlib.read_exact(&mut tag).map_err(|e| format!("a deflated array is damaged: {e}"))?;
                let (kind, size) = (word(&tag[..4], big), word(&tag[4..], big));
                zlib.take(u64::from(size))
                    .read_to_end(&mut inflated)
                    .map_err(|e| format!("a deflated array is damaged: {e}"))?;
                (kind, inflated.as_slice())
            }
            kind => (kind, data),
        };
        if kind == MATRIX
            && let Some((name, array)) = matrix(data, big)?
        {
            arrays.insert(name, array);
        }
    }
    Ok(arrays)
}

/// One array, or `None` for a class that is passed over.
fn matrix(bytes: &[u8], big: bool) -> Result<Option<(String, Array)>, String> {
    let mut parts = Elements { bytes, big };
    let mut part = || parts.next()?.ok_or_else(|| "an array is cut short".to_string());
    let ((_, flags), (_, shape), (_, name)) = (part()?, part()?, part()?);
    let flags = flags.get(..4).map(|f| word(f, big)).ok_or("an array has no class")?;
    let complex = flags & 0x0800 != 0;
    if !(6..=15).contains(&(flags & 0xff)) || complex {
        return Ok(None);
    }
    let name = String::from_utf8_lossy(name).into_owned();
    let shape: Vec<usize> = shape.chunks_exact(4).map(|d| word(d, big) as usize).collect();
    let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let (kind, data) = part()?;
    let values = numbers(kind, data, big).ok_or_else(|| format!("`{name}` has elements of the unknown type {kind}"))?;
    match count == Some(values.len()) {
        true => Ok(Some((name, Array { shape, values }))),
        false => Err(format!("`{name}` of the shape {shape:?} has {} elements", values.len())),
    }
}

fn numbers(kind: u32, data: &[u8], big: bool) -> Option<Vec<f64>> {
    macro_rules! decode {
        ($ty:ty) => {{
            let (chunks, _) = data.as_chunks();
            let value =
                |b: &[u8; size_of::<$ty>()]| if big { <$ty>::from_be_bytes(*b) } else { <$ty>::from_le_bytes(*b) };
            Some(chunks.iter().map(|b| value(b) as f64).collect())
        }};
    }
    match kind {
        1 => decode!(i8),
        2 => decode!(u8),
        3 => decode!(i16),
        4 => decode!(u16),
        5 => decode!(i32),
        6 => decode!(u32),
        7 => decode!(f32),
        9 => decode!(f64),
        12 => decode!(i64),
        13 => decode!(u64),
        _ => None,
    }
}

/// Elements behind each other.
struct Elements<'a> {
    bytes: &'a [u8],
    big: bool,
}

impl<'a> Elements<'a> {
    fn next(&mut self) -> Result<Option<(u32, &'a [u8])>, String> {
        let bytes = self.bytes;
        if bytes.is_empty() {
            return Ok(None);
        }
        let cut = || "is cut short".to_string();
        let tag = word(bytes.get(..4).ok_or_else(cut)?, self.big);
        if tag >> 16 != 0 {
            let size = (tag >> 16) as usize;
            let data = bytes.get(4..8).and_then(|d| d.get(..size)).ok_or_else(cut)?;
            self.bytes = &bytes[8..];
            return Ok(Some((tag & 0xffff, data)));
        }
        let size = word(bytes.get(4..8).ok_or_else(cut)?, self.big) as usize;
        let data = bytes.get(8..).and_then(|d| d.get(..size)).ok_or_else(cut)?;
        // Deflated elements follow each other without padding.
        let padded = if tag == COMPRESSED { size } else { size.next_multiple_of(8) };
        self.bytes = bytes.get(8 + padded..).unwrap_or_default();
        Ok(Some((tag, data)))
    }
}

fn word(bytes: &[u8], big: bool) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(bytes);
    if big { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn example() -> BTreeMap<String, Array> {
        let mask = Array { shape: vec![2, 3, 2], values: (0..12).map(|i| f64::from(i % 2)).collect() };
        let plane = Array { shape: vec![4, 1], values: vec![0.1, -2.5, 1e300, 7.0] };
        BTreeMap::from([("ObsMask".into(), mask), ("P".into(), plane)])
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse(&to_bytes(&example())).unwrap(), example());
    }

    /// A file as MATLAB writes it: deflated, small elements, a logical array of bytes, classes that are passed over.
    fn as_matlab(big: bool) -> Vec<u8> {
        let u32s = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let element = |kind: u32, data: &[u8]| {
            let mut out = [u32s(kind), u32s(data.len() as u32)].concat();
            out.extend(data);
            out.resize(out.len().next_multiple_of(8), 0);
            out
        };
        let small = |kind: u32, data: &[u8]| {
            let mut out = u32s(kind | (data.len() as u32) << 16).to_vec();
            out.extend(data);
            out.resize(8, 0);
            out
        };
        let array = |class: u32, shape: &[u32], name: &[u8], real: Vec<u8>| {
            let shape: Vec<u8> = shape.iter().flat_map(|d| u32s(*d)).collect();
            let flags = [u32s(class), [0; 4]].concat();
            let body = [element(UINT32, &flags), element(INT32, &shape), small(INT8, name), real].concat();
            element(MATRIX, &body)
        };
        let mut out = vec![b' '; 124];
        out.extend(if big { [1, 0, b'M', b'I'] } else { [0, 1, b'I', b'M'] });
        let deflate = |data: &[u8]| {
            let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
            zlib.write_all(data).unwrap();
            zlib.finish().unwrap()
        };
        let logical = array(9 | 0x0200, &[3, 1, 1], b"M", small(2, &[1, 0, 1]));
        let zipped = deflate(&logical);
        out.extend([u32s(COMPRESSED), u32s(zipped.len() as u32)].concat());
        out.extend(zipped);
        let single = if big { 2.5f32.to_be_bytes() } else { 2.5f32.to_le_bytes() };
        out.extend(array(4, &[1, 3], b"txt", small(4, b"ab")));
        out.extend(array(6, &[1, 1], b"Res", small(7, &single)));
        out
    }

    #[test]
    fn forms_that_matlab_writes_are_read() {
        for big in [false, true] {
            let arrays = parse(&as_matlab(big)).unwrap();
            assert_eq!(arrays.keys().collect::<Vec<_>>(), ["M", "Res"]);
            assert_eq!(arrays["M"], Array { shape: vec![3, 1, 1], values: vec![1.0, 0.0, 1.0] });
            assert_eq!(arrays["Res"].values, [2.5]);
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        assert!(parse(b"MATLAB 7.3").is_err());
        let whole = as_matlab(false);
        for cut in 129..whole.len() {
            // Never a panic; a cut between elements leaves a shorter file that is whole.
            let _ = parse(&whole[..cut]);
        }
        let mut bytes = to_bytes(&example());
        let cut = bytes.len() - 3;
        assert!(parse(&bytes[..cut]).unwrap_err().contains("cut short"));
        // The first extent becomes three.
        let at = bytes.windows(4).position(|w| w == [2, 0, 0, 0]).unwrap();
        bytes[at] = 3;
        assert!(parse(&bytes).unwrap_err().contains("[3, 3, 2]"));
    }
}
