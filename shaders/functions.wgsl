// What all shaders share: elements that are narrower than a word, each rounded to the nearest, ties to even; and
// functions that are more exact than those of the language need be.

fn float_of_f16(bits: u32) -> f32 { return unpack2x16float(bits).x; }

fn float_of_bf16(bits: u32) -> f32 { return bitcast<f32>(bits << 16u); }

fn float_of_e5m2(bits: u32) -> f32 { return unpack2x16float(bits << 8u).x; }

fn float_of_e4m3(bits: u32) -> f32 {
    let magnitude = bits & 0x7fu;
    var value = bitcast<f32>((magnitude << 20u) + 0x3c000000u);
    if magnitude < 8u { value = f32(magnitude) * 0.001953125; }
    if magnitude == 0x7fu { value = bitcast<f32>(0x7fc00000u); }
    return select(value, -value, bits >= 0x80u);
}

// The bits above `shift` of a number, rounded.
fn rounded_bits(bits: u32, shift: u32) -> u32 {
    return (bits + (1u << (shift - 1u)) - 1u + ((bits >> shift) & 1u)) >> shift;
}

fn bf16_of_float(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    if (bits & 0x7fffffffu) > 0x7f800000u { return (bits >> 16u) | 0x40u; }
    return rounded_bits(bits, 16u);
}

fn bf16_of_pair(v: vec2<f32>) -> u32 { return bf16_of_float(v.x) | (bf16_of_float(v.y) << 16u); }

fn f16_of_float(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u { return sign | 0x7e00u; }
    // From 65520 on it is infinite.
    if magnitude >= 0x477ff000u { return sign | 0x7c00u; }
    // Below 2^-14 the step is 2^-24 everywhere.
    if magnitude < 0x38800000u { return sign | u32(round(bitcast<f32>(magnitude) * 16777216.0)); }
    return sign | rounded_bits(magnitude - 0x38000000u, 13u);
}

fn f16_of_pair(v: vec2<f32>) -> u32 { return f16_of_float(v.x) | (f16_of_float(v.y) << 16u); }

// Saturates at 448.
fn e4m3_of_float(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 24u) & 0x80u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u { return sign | 0x7fu; }
    // Below 2^-6 the step is 2^-9 everywhere.
    if magnitude < 0x3c800000u { return sign | u32(round(bitcast<f32>(magnitude) * 512.0)); }
    return sign | min(rounded_bits(magnitude - 0x3c000000u, 20u), 0x7eu);
}

fn pack_bytes(v: vec4<u32>) -> u32 {
    return (v.x & 0xffu) | ((v.y & 0xffu) << 8u) | ((v.z & 0xffu) << 16u) | (v.w << 24u);
}

fn is_nan(x: f32) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }

// Of two numbers; NaN if one of them is.
fn maximum(a: f32, b: f32) -> f32 { return select(select(a, b, b > a), a + b, is_nan(a) || is_nan(b)); }
fn minimum(a: f32, b: f32) -> f32 { return select(select(a, b, b < a), a + b, is_nan(a) || is_nan(b)); }

// Sine and cosine for arguments of models (below 2^16 or so), by reduction to a quarter of pi in three parts
// (Cody, Waite 1980) and polynomials of Cephes.
fn quarter_turns(x: f32) -> vec2<f32> {
    let turns = round(x * 0.636619772);
    var rest = fma(turns, -1.5703125, x);
    rest = fma(turns, -4.83751297e-4, rest);
    return vec2(fma(turns, -7.54978942e-8, rest), turns);
}

fn sine_of(rest: f32, turn: i32) -> f32 {
    let z = rest * rest;
    let s = fma(rest * z, fma(z, fma(z, -1.9515296e-4, 8.3321609e-3), -1.6666655e-1), rest);
    let c = fma(z * z, fma(z, fma(z, 2.4433157e-5, -1.3887316e-3), 4.1666646e-2), fma(z, -0.5, 1.0));
    let value = select(s, c, (turn & 1) == 1);
    return select(value, -value, (turn & 2) == 2);
}

fn sine(x: f32) -> f32 {
    let q = quarter_turns(x);
    return sine_of(q.x, i32(q.y));
}

fn cosine(x: f32) -> f32 {
    let q = quarter_turns(x);
    return sine_of(q.x, i32(q.y) + 1);
}

// Cephes.
fn arc_tangent(x: f32) -> f32 {
    let a = abs(x);
    var base = 0.0;
    var t = a;
    if a > 2.41421356 {
        base = 1.57079633;
        t = -1.0 / a;
    } else if a > 0.414213562 {
        base = 0.785398163;
        t = (a - 1.0) / (a + 1.0);
    }
    let z = t * t;
    let p = fma(z, fma(z, fma(z, 8.05374449e-2, -1.38776856e-1), 1.99777106e-1), -3.33329491e-1);
    let value = base + fma(p * z, t, t);
    return select(value, -value, x < 0.0);
}

// Of exp by parts: 2^n times a polynomial of degree six.
fn exponential(x: f32) -> f32 {
    let n = round(clamp(x, -104.0, 89.0) * 1.44269504);
    let r = fma(n, 2.12194440e-4, fma(n, -0.693359375, clamp(x, -104.0, 89.0)));
    let p = fma(r, fma(r, fma(r, fma(r, fma(r, 1.9875691e-4, 1.3981999e-3), 8.3334519e-3), 4.1665796e-2), 1.6666665e-1), 0.5);
    // In two steps: 2^128 has no f32, and 2^-150 neither.
    let half = i32(n) / 2;
    let value = ldexp(ldexp(fma(p, r * r, r) + 1.0, half), i32(n) - half);
    return select(select(value, bitcast<f32>(0x7f800000u), x > 88.72283), x, is_nan(x));
}

// Abramowitz, Stegun 7.1.26 is not exact enough; this is by Numerical Recipes' Chebyshev fit of erfc, within 1.2e-7, and
// by the series near zero.
fn error_function(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.5 {
        let z = x * x;
        return x * fma(z, fma(z, fma(z, fma(z, fma(z, -7.57575758e-4 * 1.1283791671, 5.22397762e-3), -2.68661706e-2), 1.12837917e-1), -3.76126389e-1), 1.12837917);
    }
    let t = 1.0 / fma(0.5, a, 1.0);
    var p = fma(t, 0.17087277, -0.82215223);
    p = fma(t, p, 1.48851587);
    p = fma(t, p, -1.13520398);
    p = fma(t, p, 0.27886807);
    p = fma(t, p, -0.18628806);
    p = fma(t, p, 0.09678418);
    p = fma(t, p, 0.37409196);
    p = fma(t, p, 1.00002368);
    p = fma(t, p, -1.26551223);
    let value = 1.0 - t * exponential(fma(-a, a, p));
    return select(value, -value, x < 0.0);
}

fn hyperbolic_tangent(x: f32) -> f32 {
    let a = abs(x);
    if a < 0.2 {
        let z = x * x;
        return x * fma(z, fma(z, fma(z, fma(z, 2.18694885e-2, -5.39682540e-2), 1.33333333e-1), -3.33333333e-1), 1.0);
    }
    let value = 1.0 - 2.0 / (exponential(2.0 * a) + 1.0);
    return select(value, -value, x < 0.0);
}

fn sigmoid(x: f32) -> f32 { return 1.0 / (1.0 + exponential(-x)); }
fn silu(x: f32) -> f32 { return x * sigmoid(x); }
fn gelu(x: f32) -> f32 { return 0.5 * x * (1.0 + error_function(x * 0.707106781)); }
fn gelu_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + hyperbolic_tangent(0.797884561 * fma(0.044715 * x, x * x, x)));
}

// The sign of the divisor, as Python has it.
fn floor_remainder(a: f32, b: f32) -> f32 { return a - b * floor(a / b); }

fn power(a: f32, b: f32) -> f32 {
    if b == 0.0 || a == 1.0 { return 1.0; }
    if b == 1.0 { return a; }
    if b == 2.0 { return a * a; }
    if b == 0.5 { return sqrt(a); }
    if a == 0.0 { return select(0.0, bitcast<f32>(0x7f800000u), b < 0.0); }
    let value = exponential(b * log(abs(a)));
    if a > 0.0 { return value; }
    if b != round(b) { return bitcast<f32>(0x7fc00000u); }
    return select(value, -value, (i32(b) & 1) == 1);
}

// Row i of the result is row i of `sums` plus element i of `a` times `b`.
fn with_outer(sums: mat4x4<f32>, a: vec4<f32>, b: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(fma(vec4(a.x), b, sums[0]), fma(vec4(a.y), b, sums[1]), fma(vec4(a.z), b, sums[2]),
        fma(vec4(a.w), b, sums[3]));
}

// How a sequence is cut into blocks: runs that no block crosses, each cut by itself, the last block of a run ragged.
// `runs` lengths, at least one, the last repeated to the end of the sequence.
struct Cut { tokens: u32, size: u32, runs: u32, pad: u32, lengths: array<vec4<u32>, 8> }

// The tokens of a block, which exists: the first, and behind the last.
fn tokens_of(given: Cut, number: u32) -> vec2<u32> {
    var cut = given;
    var block = number;
    var start = 0u;
    var length = cut.lengths[0].x;
    var blocks = (length + cut.size - 1u) / cut.size;
    for (var run = 1u; run < cut.runs && block >= blocks; run++) {
        block -= blocks;
        start += length;
        length = cut.lengths[run / 4u][run % 4u];
        blocks = (length + cut.size - 1u) / cut.size;
    }
    // Only the last run is repeated.
    let first = start + block / max(blocks, 1u) * length;
    let begin = first + block % max(blocks, 1u) * cut.size;
    return vec2(begin, min(begin + cut.size, first + length));
}

// The block and the run that hold a token.
fn place_of(given: Cut, number: u32) -> vec2<u32> {
    var cut = given;
    var token = number;
    var before = 0u;
    var length = cut.lengths[0].x;
    var blocks = (length + cut.size - 1u) / cut.size;
    var run = 0u;
    while run + 1u < cut.runs && token >= length {
        before += blocks;
        token -= length;
        run++;
        length = cut.lengths[run / 4u][run % 4u];
        blocks = (length + cut.size - 1u) / cut.size;
    }
    let repeat = token / max(length, 1u);
    return vec2(before + repeat * blocks + token % max(length, 1u) / cut.size, run + repeat);
}

// What attentions over all keys and over lists are told.
struct AttentionSizes {
    // Batch times heads, and heads an image.
    heads: u32,
    image_heads: u32,
    n: u32,
    m: u32,
    d: u32,
    e: u32,
    // Of queries, in a query block.
    tiles: u32,
    query_blocks: u32,
    key_blocks: u32,
    longest: u32,
    centroids: u32,
    scale: f32,
    // Elements from image to image, head to head, token to token; the first.
    q_rows: vec4<u32>,
    k_rows: vec4<u32>,
    v_rows: vec4<u32>,
    y_rows: vec4<u32>,
    query_cut: Cut,
    key_cut: Cut,
}

// Where the row of a token of a head begins; `rows` are elements from image to image, head to head, token to token, and the
// first.
fn row_of(rows: vec4<u32>, image_heads: u32, head: u32, token: u32) -> u32 {
    return head / image_heads * rows.x + head % image_heads * rows.y + token * rows.z + rows.w;
}

// The sum over the 256 threads of a workgroup, always in the same order, and the greatest value; all of them call it.
var<workgroup> shares: array<f32, 256>;

fn sum_of_workgroup(value: f32, thread: u32) -> f32 {
    shares[thread] = value;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half { shares[thread] += shares[thread + half]; }
    }
    workgroupBarrier();
    let sum = shares[0];
    workgroupBarrier();
    return sum;
}

fn most_of_workgroup(value: f32, thread: u32) -> f32 {
    shares[thread] = value;
    for (var half = 128u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half { shares[thread] = max(shares[thread], shares[thread + half]); }
    }
    workgroupBarrier();
    let most = shares[0];
    workgroupBarrier();
    return most;
}
