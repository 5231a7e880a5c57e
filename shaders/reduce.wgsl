// Reductions over any axes, and positions of extremes. GROUP threads share a result: each takes terms in order, then
// partial results are joined in an order that depends on nothing but the shape. Sums of floats carry their rounding
// error along (Knuth's two-sum).

struct Sizes {
    results: u32,
    terms: u32,
    kept_rank: u32,
    gone_rank: u32,
    // Dimensions that stay with their strides in x, then those that go.
    kept: array<vec4<u32>, 4>,
    gone: array<vec4<u32>, 4>,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> x: array<u32>;
fn x_at(i: u32) -> f32 { return bitcast<f32>(x[i]); }
@group(0) @binding(1) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<uniform> sizes: Sizes;
//: end

//: GROUP
const GROUP: u32 = 32u;
//: end

//: partial
// A sum: what was added up, and what rounding took from it.
struct Partial { sum: f32, rest: f32 }
fn start() -> Partial { return Partial(0.0, 0.0); }
fn taken(p: Partial, term: f32, at: u32) -> Partial {
    let total = p.sum + term;
    let part = total - p.sum;
    return Partial(total, p.rest + ((p.sum - (total - part)) + (term - part)));
}
fn joined(p: Partial, q: Partial) -> Partial {
    let both = taken(p, q.sum, 0u);
    return Partial(both.sum, both.rest + q.rest);
}
fn finished(p: Partial) -> f32 { return select(p.sum, p.sum + p.rest, p.sum - p.sum == 0.0); }
//: end

var<workgroup> parts: array<Partial, 256>;

fn kept_place(at: u32) -> u32 {
    var rest = at;
    var place = 0u;
    for (var k = sizes.kept_rank; k > 0u; k--) {
        let d = k - 1u;
        place += rest % sizes.kept[d / 4u][d % 4u] * sizes.kept[2u + d / 4u][d % 4u];
        rest /= sizes.kept[d / 4u][d % 4u];
    }
    return place;
}

fn gone_place(at: u32) -> u32 {
    var rest = at;
    var place = 0u;
    for (var k = sizes.gone_rank; k > 0u; k--) {
        let d = k - 1u;
        place += rest % sizes.gone[d / 4u][d % 4u] * sizes.gone[2u + d / 4u][d % 4u];
        rest /= sizes.gone[d / 4u][d % 4u];
    }
    return place;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let result = (id.y * count.x + id.x) * (256u / GROUP) + thread / GROUP;
    let place = kept_place(result);
    var part = start();
    if result < sizes.results {
        for (var i = thread % GROUP; i < sizes.terms; i += GROUP) { part = taken(part, x_at(place + gone_place(i)), i); }
    }
    parts[thread] = part;
    for (var half = GROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread % GROUP < half { parts[thread] = joined(parts[thread], parts[thread + half]); }
    }
    if result < sizes.results && thread % GROUP == 0u { y_set(result, finished(parts[thread])); }
}
