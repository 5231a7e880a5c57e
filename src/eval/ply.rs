//! Vertices of PLY files: ASCII, little- and big-endian, whatever else a vertex carries.

use std::path::Path;

use crate::{Error, Result, geometry::Vec3};

/// The positions of all vertices. Errors: `file.io`, `eval.ply` for files that are no PLY, have lists before or in
/// their vertices, no x, y and z, or are cut short.
pub fn read(path: &Path) -> Result<Vec<Vec3>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot be read", &e))?;
    parse(&bytes).map_err(|problem| Error::bad_file("eval.ply", format!("{}: {problem}", path.display())))
}

#[derive(Clone, Copy, PartialEq)]
enum Encoding {
    Ascii,
    Little,
    Big,
}

/// A scalar property: its width in bytes, and whether it is an integer with a sign, one without, or a float.
#[derive(Clone, Copy)]
struct Scalar {
    bytes: usize,
    kind: char,
}

struct Element {
    name: String,
    count: usize,
    properties: Vec<(String, Scalar)>,
    lists: bool,
}

fn parse(bytes: &[u8]) -> Result<Vec<Vec3>, String> {
    let end = bytes.windows(10).position(|w| w == b"end_header").ok_or("is no PLY file: it has no header")?;
    let header = std::str::from_utf8(&bytes[..end]).map_err(|_| "its header is not text")?;
    let line_end = bytes[end..].iter().position(|b| *b == b'\n').ok_or("ends behind its header")?;
    let (encoding, elements) = head(header)?;
    let mut body = &bytes[end + line_end + 1..];
    for element in &elements {
        let vertices = element.name == "vertex";
        if element.lists && (vertices || elements.iter().any(|e| e.name == "vertex")) {
            return Err(format!("`{}` has lists, and stands not behind the vertices", element.name));
        }
        if vertices {
            return positions(element, encoding, body);
        }
        body = skip(element, encoding, body)?;
    }
    Err("has no vertices".into())
}

/// The encoding, and the elements up to the vertices.
fn head(header: &str) -> Result<(Encoding, Vec<Element>), String> {
    let mut lines = header.lines().map(|l| l.split_ascii_whitespace().collect::<Vec<_>>());
    if lines.next().as_deref() != Some(&["ply"]) {
        return Err("is no PLY file".into());
    }
    let (mut encoding, mut elements) = (None, Vec::<Element>::new());
    for words in lines {
        match words.as_slice() {
            ["format", "ascii", _] => encoding = Some(Encoding::Ascii),
            ["format", "binary_little_endian", _] => encoding = Some(Encoding::Little),
            ["format", "binary_big_endian", _] => encoding = Some(Encoding::Big),
            ["element", ..] if elements.last().is_some_and(|e| e.name == "vertex") => break,
            ["element", name, count] => {
                let count = count.parse().map_err(|_| format!("`{count}` is no number of elements"))?;
                elements.push(Element { name: name.to_string(), count, properties: Vec::new(), lists: false });
            }
            ["property", "list", ..] => elements.last_mut().ok_or("a property has no element")?.lists = true,
            ["property", ty, name] => {
                let scalar = scalar(ty).ok_or_else(|| format!("`{ty}` is no type of a property"))?;
                elements.last_mut().ok_or("a property has no element")?.properties.push((name.to_string(), scalar));
            }
            _ => {}
        }
    }
    Ok((encoding.ok_or("does not say its format")?, elements))
}

fn scalar(ty: &str) -> Option<Scalar> {
    let (bytes, kind) = match ty {
        "char" | "int8" => (1, 'i'),
        "uchar" | "uint8" => (1, 'u'),
        "short" | "int16" => (2, 'i'),
        "ushort" | "uint16" => (2, 'u'),
        "int" | "int32" => (4, 'i'),
        "uint" | "uint32" => (4, 'u'),
        "float" | "float32" => (4, 'f'),
        "double" | "float64" => (8, 'f'),
        _ => return None,
    };
    Some(Scalar { bytes, kind })
}

fn stride(element: &Element) -> usize {
    element.properties.iter().map(|(_, s)| s.bytes).sum()
}

fn skip<'a>(element: &Element, encoding: Encoding, body: &'a [u8]) -> Result<&'a [u8], String> {
    let cut = || format!("is cut short among its {} `{}`", element.count, element.name);
    if encoding != Encoding::Ascii {
        let size = element.count.checked_mul(stride(element));
        return size.and_then(|n| body.get(n..)).ok_or_else(cut);
    }
    let mut rest = body;
    for _ in 0..element.count {
        let line = rest.iter().position(|b| *b == b'\n').ok_or_else(cut)?;
        rest = &rest[line + 1..];
    }
    Ok(rest)
}

fn positions(element: &Element, encoding: Encoding, body: &[u8]) -> Result<Vec<Vec3>, String> {
    let cut = || format!("is cut short among its {} vertices", element.count);
    let mut places = [(0, 0, Scalar { bytes: 0, kind: 'f' }); 3];
    for (place, axis) in places.iter_mut().zip(["x", "y", "z"]) {
        let index = element.properties.iter().position(|(name, _)| name == axis);
        let index = index.ok_or_else(|| format!("its vertices have no `{axis}`"))?;
        let offset = element.properties[..index].iter().map(|(_, s)| s.bytes).sum();
        *place = (index, offset, element.properties[index].1);
    }
    if encoding == Encoding::Ascii {
        let text = std::str::from_utf8(body).map_err(|_| "its vertices are not text")?;
        let point = |line: &str| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [x, y, z] = places.map(|(index, ..)| words.get(index).and_then(|w| w.parse().ok()));
            Some([x?, y?, z?])
        };
        let points: Option<Vec<Vec3>> =
            text.lines().filter(|l| !l.trim().is_empty()).take(element.count).map(point).collect();
        return points.filter(|p| p.len() == element.count).ok_or_else(cut);
    }
    let stride = stride(element);
    let size = element.count.checked_mul(stride);
    let rows = size.and_then(|n| body.get(..n)).ok_or_else(cut)?;
    let number = |row: &[u8], (_, offset, scalar): (usize, usize, Scalar)| {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..scalar.bytes];
        bytes.copy_from_slice(&row[offset..offset + scalar.bytes]);
        if encoding == Encoding::Big {
            bytes.reverse();
        }
        match (scalar.kind, &*bytes) {
            ('f', [a, b, c, d]) => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
            ('f', [a, b, c, d, e, f, g, h]) => f64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]),
            (kind, bytes) => {
                let unsigned = bytes.iter().rev().fold(0i64, |v, b| v << 8 | i64::from(*b));
                let wrap = 1i64 << (8 * bytes.len());
                (if kind == 'i' && unsigned >= wrap / 2 { unsigned - wrap } else { unsigned }) as f64
            }
        }
    };
    Ok(rows.chunks_exact(stride).map(|row| places.map(|place| number(row, place))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: [Vec3; 2] = [[1.5, -2.0, 3.0], [0.25, 0.5, -8.0]];

    fn header(format: &str, properties: &str) -> Vec<u8> {
        let vertices = format!("ply\nformat {format} 1.0\ncomment x\nelement vertex 2\n{properties}");
        (vertices + "element face 1\nproperty list uchar int vertex_indices\nend_header\n").into_bytes()
    }

    #[test]
    fn all_encodings_and_other_properties_are_read() {
        let properties =
            "property uchar red\nproperty float x\nproperty double y\nproperty float z\nproperty short n\n";
        let mut ascii = header("ascii", properties);
        ascii.extend(b"255 1.5 -2.0 3 1\n7 2.5e-1 .5 -8 -3\n3 0 1 2\n");
        assert_eq!(parse(&ascii).unwrap(), POINTS);
        for (format, big) in [("binary_little_endian", false), ("binary_big_endian", true)] {
            let mut binary = header(format, properties);
            for [x, y, z] in POINTS {
                let mut put = |le: &[u8]| {
                    let mut bytes = le.to_vec();
                    if big {
                        bytes.reverse();
                    }
                    binary.extend(bytes);
                };
                put(&[9]);
                put(&(x as f32).to_le_bytes());
                put(&y.to_le_bytes());
                put(&(z as f32).to_le_bytes());
                put(&(-3i16).to_le_bytes());
            }
            binary.extend([3, 0, 0, 0, 0]);
            assert_eq!(parse(&binary).unwrap(), POINTS, "{format}");
        }
    }

    #[test]
    fn elements_before_the_vertices_are_passed_over() {
        let text = "ply\nformat ascii 1.0\nelement camera 2\nproperty float f\nelement vertex 1\nproperty int x\n\
                    property int y\nproperty int z\nend_header\n1.0\n2.0\n4 -5 6\n";
        assert_eq!(parse(text.as_bytes()).unwrap(), [[4.0, -5.0, 6.0]]);
        let mut binary = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty char x\nproperty uchar y\n\
                           property ushort z\nend_header\n"
            .to_vec();
        binary.extend([0xff, 0xff, 0xff, 0xff]);
        assert_eq!(parse(&binary).unwrap(), [[-1.0, 255.0, 65535.0]]);
    }

    #[test]
    fn damaged_files_are_refused() {
        let xyz = "property float x\nproperty float y\nproperty float z\n";
        for (bytes, problem) in [
            (b"solid".to_vec(), "no header"),
            (header("ascii", "property float x\n"), "no `y`"),
            (header("ascii", xyz), "cut short"),
            (header("binary_little_endian", xyz), "cut short"),
            (header("binary_middle_endian", xyz), "format"),
            (header("ascii", "property list uchar int x\n"), "lists"),
        ] {
            let error = parse(&bytes).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }
}
