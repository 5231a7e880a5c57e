// Images at another resolution, and what is added to them: y[p, i, j] = act(sum over taps of x[p, rows[i], columns[j]]
// with their weights + addends), of a band of rows and columns. A thread computes a value: an element, or four channels
// of a pixel. Taps are made on the host, by the operation's law, in f64.

struct Sizes {
    // Of the band: values, then rows and columns with where they begin.
    values: u32,
    rows: u32,
    columns: u32,
    first_row: u32,
    first_column: u32,
    // In values: channels side by side, and channels apart; one of them is 1.
    beside: u32,
    apart: u32,
    row_taps: u32,
    column_taps: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    pad: u32,
    pad_too: u32,
    pad_more: u32,
    // Elements from one image, row, column, channel of an addend to the next; 0 where it is stretched.
    steps: array<vec4<u32>, 2>,
    // Pairs of source and weight, of the rows of the band, then of its columns.
    taps: array<vec4<u32>, TAPS>,
}

//: TAPS
const TAPS: u32 = 64u;
//: end

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: value
alias Value = f32;
fn x_value(i: u32) -> f32 { return x_at(i); }
//: end

//: finish
// Adds what is added to the value of channel `channel`, and stores it.
fn finish(sum: Value, at: u32, image: u32, row: u32, column: u32, channel: u32) { y_set(at, sum); }
//: end

struct Tap { source: u32, weight: f32 }

fn tap(i: u32) -> Tap {
    let pair = sizes.taps[i / 2u];
    return Tap(select(pair.x, pair.z, i % 2u == 1u), bitcast<f32>(select(pair.y, pair.w, i % 2u == 1u)));
}

fn place(steps: u32, image: u32, row: u32, column: u32, channel: u32) -> u32 {
    let s = sizes.steps[steps];
    return image * s.x + row * s.y + column * s.z + channel * s.w;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let i = (id.y * count.x + id.x) * 256u + thread;
    if i >= sizes.values { return; }
    let channel_beside = i % sizes.beside;
    let pixel = i / sizes.beside;
    let column = pixel % sizes.columns;
    let row = pixel / sizes.columns % sizes.rows;
    let plane = pixel / (sizes.columns * sizes.rows);
    var sum = Value();
    for (var r = 0u; r < sizes.row_taps; r++) {
        let across = tap(row * sizes.row_taps + r);
        // A tap without weight may lie on a pixel that is not finite.
        if across.weight == 0.0 { continue; }
        let line = (plane * sizes.height + across.source) * sizes.width;
        var blend = Value();
        for (var c = 0u; c < sizes.column_taps; c++) {
            let along = tap(sizes.rows * sizes.row_taps + column * sizes.column_taps + c);
            if along.weight != 0.0 {
                blend += x_value((line + along.source) * sizes.beside + channel_beside) * along.weight;
            }
        }
        sum += blend * across.weight;
    }
    let full_row = sizes.first_row + row;
    let full_column = sizes.first_column + column;
    let at = ((plane * sizes.out_height + full_row) * sizes.out_width + full_column) * sizes.beside + channel_beside;
    finish(sum, at, plane / sizes.apart, full_row, full_column, channel_beside + plane % sizes.apart);
}
