// The reverse pass of attention of any head dimensions up to 256, any lengths, in f32. With P = exp(scale q kᵀ + bias − lse)
// and dS = P ∘ (do vᵀ − delta): dq = scale dS k, dk = scale dSᵀ q, dv = Pᵀ do. Neither P nor dS is ever stored: a workgroup
// owns 64 rows of a head, queries or keys, and walks over those of the other side, 32 at a time, in slices of shared memory.
// Every sum has one order. Rows have two parts: q and do, or k and v.
//
// OF QUERIES: dq, of queries of one query block. OF KEYS: dk and dv, of keys wherever blocks end.
//
// KEYS ALL: every query sees every key. LISTED: those of the blocks in the list of its query block. CENTRAL: keys are
// centroids, and those outside of the listed blocks are seen, each with the logarithm of its number of tokens added to its
// score.

struct Sizes {
    // Batch times heads, and heads an image.
    heads: u32,
    image_heads: u32,
    n: u32,
    // Keys, or centroids.
    m: u32,
    d: u32,
    e: u32,
    // Of rows that a workgroup owns: in a query block, or in all keys.
    tiles: u32,
    query_blocks: u32,
    key_blocks: u32,
    longest: u32,
    scale: f32,
    unused: u32,
    // Elements of the cotangent from image to image, head to head, token to token; the first.
    g_rows: vec4<u32>,
    query_cut: Cut,
    key_cut: Cut,
    centroid_cut: Cut,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> q: array<u32>;
// Four elements of a row, of which so many are there.
fn q_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(q[i])); }
@group(0) @binding(1) var<storage, read_write> k: array<u32>;
fn k_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(k[i])); }
@group(0) @binding(2) var<storage, read_write> v: array<u32>;
fn v_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(v[i])); }
@group(0) @binding(3) var<storage, read_write> g: array<u32>;
fn g_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(g[i])); }
// What attention_delta.wgsl writes.
@group(0) @binding(4) var<storage, read_write> pairs: array<u32>;
fn pairs_at(i: u32) -> f32 { return bitcast<f32>(pairs[i]); }
// What block_lists.wgsl writes, or the transpose of the lists.
fn lists_at(i: u32) -> i32 { return 0; }
// What other keys have given to dq.
fn before_at(i: u32) -> f32 { return 0.0; }
// dq or dk.
@group(0) @binding(5) var<storage, read_write> first: array<u32>;
fn first_set(i: u32, v: f32) { first[i] = bitcast<u32>(v); }
// dv.
fn second_set(i: u32, v: f32) {}
@group(0) @binding(6) var<uniform> sizes: Sizes;
//: end

const ALL = 0u;
const LISTED = 1u;
const CENTRAL = 2u;

//: KEYS
const KEYS: u32 = 0u;
//: end

// Of which side rows are owned: 0 of queries, 1 of keys.
//: OF
const OF: u32 = 0u;
//: end

//: WIDTH
// The greater head dimension, rounded up to 64, 128 or 256.
const WIDTH: u32 = 64u;
//: end

//: TAKEN
// Words that hold a bit a key block.
const TAKEN: u32 = 1u;
//: end

//: store
// Four neighbours of a row.
fn store_first(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.d; j++) { first_set(at + j, v[j]); }
}
fn store_second(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.e; j++) { second_set(at + j, v[j]); }
}
//: end

// The logarithm of a sum of which every weight is zero.
const NOTHING = 3.0e38;
// Rows of the other side at once.
const OTHERS = 32u;
// Rows that are owned, where they are told apart.
const OWNED = 1u + 63u * OF;

// Sixteen columns of 64 rows in vectors of four, then of 32 of the other side; or 64 columns of 16 of those.
var<workgroup> slices: array<vec4<f32>, 384>;
// Of 32 rows of the other side, a vector four that are owned.
var<workgroup> weights: array<vec4<f32>, 512>;
// Of every row of the other side: which it is, -1 where there is none; what its scores have added; the sum of its products.
var<workgroup> tokens: array<i32, OTHERS>;
var<workgroup> biases: array<f32, OTHERS>;
var<workgroup> deltas: array<f32, OTHERS>;
var<workgroup> taken: array<atomic<u32>, TAKEN>;
// Of every key that is owned: where its list goes on and ends; its next query block; whether the present one sees it.
var<workgroup> cursors: array<u32, OWNED>;
var<workgroup> ends: array<u32, OWNED>;
var<workgroup> nexts: array<u32, OWNED>;
var<workgroup> seen: array<u32, OWNED>;
// What all threads agree on.
var<workgroup> agreed: u32;

fn query_first(head: u32, token: u32, column: u32) -> vec4<f32> {
    if column >= sizes.d { return vec4(0.0); }
    return q_part((head * sizes.n + token) * sizes.d + column, sizes.d - column);
}

fn query_second(head: u32, token: u32, column: u32) -> vec4<f32> {
    if column >= sizes.e { return vec4(0.0); }
    return g_part(row_of(sizes.g_rows, sizes.image_heads, head, token) + column, sizes.e - column);
}

fn key_first(head: u32, token: u32, column: u32) -> vec4<f32> {
    if column >= sizes.d { return vec4(0.0); }
    return k_part((head * sizes.m + token) * sizes.d + column, sizes.d - column);
}

fn key_second(head: u32, token: u32, column: u32) -> vec4<f32> {
    if column >= sizes.e { return vec4(0.0); }
    return v_part((head * sizes.m + token) * sizes.e + column, sizes.e - column);
}

// Parts of a row that is owned, and of one of the other side in a slot.
fn own_part(head: u32, row: u32, column: u32, second: bool) -> vec4<f32> {
    if OF == 0u {
        if second { return query_second(head, row, column); }
        return query_first(head, row, column);
    }
    if second { return key_second(head, row, column); }
    return key_first(head, row, column);
}

fn other_part(head: u32, slot: u32, column: u32, second: bool) -> vec4<f32> {
    if tokens[slot] < 0 { return vec4(0.0); }
    let row = u32(tokens[slot]);
    if OF == 0u {
        if second { return key_second(head, row, column); }
        return key_first(head, row, column);
    }
    if second { return query_second(head, row, column); }
    return query_first(head, row, column);
}

// Of 64 rows and 32 of the other side, the products of one part: a vector four rows that are owned, of two columns.
fn products(head: u32, begin: u32, last: u32, second: bool, thread: u32) -> array<vec4<f32>, 2> {
    var sums: array<vec4<f32>, 2>;
    let across = thread % 16u;
    let down = thread / 16u;
    let width = select(sizes.d, sizes.e, second);
    for (var column = 0u; column < width; column += 16u) {
        workgroupBarrier();
        for (var i = thread; i < 384u; i += 256u) {
            let line = i / 4u;
            let part = i % 4u;
            var four = vec4(0.0);
            if line < 64u {
                if begin + line < last { four = own_part(head, begin + line, column + 4u * part, second); }
                slices[part * 64u + line] = four;
            } else {
                slices[256u + part * OTHERS + line - 64u] = other_part(head, line - 64u, column + 4u * part, second);
            }
        }
        workgroupBarrier();
        for (var i = 0u; i < 4u; i++) {
            let a0 = slices[i * 64u + down];
            let a1 = slices[i * 64u + down + 16u];
            let a2 = slices[i * 64u + down + 32u];
            let a3 = slices[i * 64u + down + 48u];
            for (var c = 0u; c < 2u; c++) {
                let b = slices[256u + i * OTHERS + across + 16u * c];
                sums[c] += vec4(dot(a0, b), dot(a1, b), dot(a2, b), dot(a3, b));
            }
        }
    }
    return sums;
}

// Adds to sums the products of weights and one part of the other side.
fn gather(sums: ptr<function, array<vec4<f32>, WIDTH / 16u>>, own: array<vec4<f32>, 2>, head: u32, second: bool,
          thread: u32) {
    let across = thread % 16u;
    let down = thread / 16u;
    workgroupBarrier();
    weights[across * 16u + down] = own[0];
    weights[(across + 16u) * 16u + down] = own[1];
    for (var span = 0u; span < WIDTH; span += 64u) {
        for (var part = 0u; part < 2u; part++) {
            workgroupBarrier();
            slices[thread] = other_part(head, 16u * part + down, span + 4u * across, second);
            workgroupBarrier();
            for (var j = 0u; j < 16u; j++) {
                let w = weights[(16u * part + j) * 16u + down];
                let b = slices[j * 16u + across];
                for (var c = 0u; c < 4u; c++) {
                    (*sums)[span / 16u + c] = fma(w, vec4(b[c]), (*sums)[span / 16u + c]);
                }
            }
        }
    }
}

// Where the tables behind all lists begin.
fn table() -> u32 { return sizes.heads * sizes.query_blocks * (sizes.longest + 1u); }

// What a query finds in a slot, in shared memory.
fn fill_with_key(slot: u32, at: u32, slots: u32, list: u32) {
    var token = -1;
    var bias = 0.0;
    if at < slots {
        if KEYS == ALL { token = i32(at); }
        if KEYS == LISTED {
            let range = table() + 2u * u32(lists_at(list + at / sizes.key_cut.size));
            let own = lists_at(range) + i32(at % sizes.key_cut.size);
            if own < lists_at(range + 1u) { token = own; }
        }
        if KEYS == CENTRAL {
            let place = table() + 2u * (sizes.key_blocks + at);
            let block = u32(lists_at(place));
            if ((atomicLoad(&taken[block / 32u]) >> (block % 32u)) & 1u) == 0u { token = i32(at); }
            bias = log(f32(lists_at(place + 1u)));
        }
    }
    tokens[slot] = token;
    biases[slot] = bias;
}

// What a key finds in a slot.
fn fill_with_query(head: u32, slot: u32, at: u32, end: u32) {
    var token = -1;
    var lse = NOTHING;
    var delta = 0.0;
    if at < end {
        token = i32(at);
        lse = pairs_at(2u * (head * sizes.n + at));
        delta = pairs_at(2u * (head * sizes.n + at) + 1u);
    }
    tokens[slot] = token;
    biases[slot] = lse;
    deltas[slot] = delta;
}

// The key block of a key, or of a centroid.
fn block_of(row: u32) -> u32 {
    if KEYS == CENTRAL { return place_of(sizes.key_cut, tokens_of(sizes.centroid_cut, row).x).x; }
    return place_of(sizes.key_cut, row).x;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let down = thread / 16u;
    let across = thread % 16u;
    let blocks = select(sizes.query_blocks * sizes.tiles, sizes.tiles, OF == 1u);
    let head = (id.y * count.x + id.x) / blocks;
    if head >= sizes.heads { return; }
    let tile = (id.y * count.x + id.x) % blocks;
    var begin = tile * 64u;
    var last = min(select(sizes.n, sizes.m, OF == 1u), begin + 64u);
    var list = 0u;
    // Rows of the other side that are walked over, block by block where keys have lists.
    var slots = select(sizes.m, sizes.n, OF == 1u);
    if OF == 0u && KEYS != ALL {
        let block = tile / sizes.tiles;
        let range = tokens_of(sizes.query_cut, block);
        begin = range.x + tile % sizes.tiles * 64u;
        last = min(range.y, begin + 64u);
        if begin >= range.y { return; }
        list = (head * sizes.query_blocks + block) * (sizes.longest + 1u) + 1u;
        if thread == 0u { agreed = u32(lists_at(list - 1u)); }
        for (var i = thread; i < TAKEN; i += 256u) { atomicStore(&taken[i], 0u); }
        let listed = workgroupUniformLoad(&agreed);
        if KEYS == LISTED { slots = listed * sizes.key_cut.size; }
        if KEYS == CENTRAL {
            for (var i = thread; i < listed; i += 256u) {
                let block = u32(lists_at(list + i));
                atomicOr(&taken[block / 32u], 1u << (block % 32u));
            }
        }
    }
    let walks = OF == 1u && KEYS != ALL;
    let lists = head * (sizes.key_blocks + 1u + sizes.query_blocks * sizes.longest);
    if walks && thread < 64u {
        var range = vec2(0u);
        if begin + thread < last {
            let most = sizes.query_blocks * sizes.longest;
            let start = lists + block_of(begin + thread);
            range = vec2(min(u32(lists_at(start)), most), min(u32(lists_at(start + 1u)), most));
        }
        cursors[thread % OWNED] = range.x;
        ends[thread % OWNED] = range.y;
    }

    // Four rows of this thread: what their scores have added, and their logarithms or zeros; the sums of their products.
    var bias = vec4(0.0);
    var lse = vec4(0.0);
    var delta = vec4(0.0);
    for (var r = 0u; r < 4u; r++) {
        let row = begin + down + 16u * r;
        if row >= last {
            lse[r] = NOTHING;
        } else if OF == 0u {
            lse[r] = pairs_at(2u * (head * sizes.n + row));
            delta[r] = pairs_at(2u * (head * sizes.n + row) + 1u);
        } else if KEYS == CENTRAL {
            let range = tokens_of(sizes.centroid_cut, row);
            bias[r] = log(f32(range.y - range.x));
        }
    }
    var firsts: array<vec4<f32>, WIDTH / 16u>;
    var seconds: array<vec4<f32>, WIDTH / 16u>;
    var start = 0u;
    var end = select(slots, 0u, walks);
    var block = 0u;
    loop {
        if walks && start >= end {
            // The next query block that sees any of these keys, and which of them it sees.
            workgroupBarrier();
            if thread < 64u {
                var next = sizes.query_blocks;
                let at = cursors[thread % OWNED];
                if at < ends[thread % OWNED] { next = u32(lists_at(lists + sizes.key_blocks + 1u + at)); }
                nexts[thread % OWNED] = next;
            }
            workgroupBarrier();
            if thread == 0u {
                var least = sizes.query_blocks;
                for (var i = 0u; i < OWNED; i++) { least = min(least, nexts[i]); }
                agreed = select(least, block, KEYS == CENTRAL);
            }
            let present = workgroupUniformLoad(&agreed);
            if present >= sizes.query_blocks { break; }
            if thread < 64u {
                let listed = nexts[thread % OWNED] == present;
                seen[thread % OWNED] = select(0u, 1u, listed == (KEYS == LISTED));
                if listed { cursors[thread % OWNED] += 1u; }
            }
            block = present + 1u;
            let range = tokens_of(sizes.query_cut, present);
            start = range.x;
            end = range.y;
        }
        if start >= end { break; }
        workgroupBarrier();
        if thread < OTHERS {
            if OF == 0u {
                fill_with_key(thread, start + thread, end, list);
            } else {
                fill_with_query(head, thread, start + thread, end);
            }
        }
        var scores = products(head, begin, last, false, thread);
        var slopes = products(head, begin, last, true, thread);
        for (var c = 0u; c < 2u; c++) {
            let slot = across + 16u * c;
            var there = vec4<bool>(tokens[slot] >= 0);
            var sums = lse;
            var taken_off = delta;
            var added = bias;
            if OF == 0u {
                added = vec4(biases[slot]);
            } else {
                sums = select(vec4(biases[slot]), vec4(NOTHING), lse == vec4(NOTHING));
                taken_off = vec4(deltas[slot]);
                if walks {
                    for (var r = 0u; r < 4u; r++) { there[r] = there[r] && seen[(down + 16u * r) % OWNED] == 1u; }
                }
            }
            let p = select(vec4(0.0), exp(fma(scores[c], vec4(sizes.scale), added) - sums), there);
            scores[c] = p;
            slopes[c] = p * (slopes[c] - taken_off);
        }
        if OF == 1u { gather(&seconds, scores, head, true, thread); }
        gather(&firsts, slopes, head, false, thread);
        start += OTHERS;
    }
    let rows = select(sizes.n, sizes.m, OF == 1u);
    for (var r = 0u; r < 4u; r++) {
        let row = begin + down + 16u * r;
        if row >= last { break; }
        for (var span = 0u; span < WIDTH; span += 64u) {
            let column = span + 4u * across;
            let i = span / 16u;
            if column < sizes.d {
                let at = (head * rows + row) * sizes.d + column;
                var four = sizes.scale * vec4(firsts[i][r], firsts[i + 1u][r], firsts[i + 2u][r], firsts[i + 3u][r]);
                for (var j = 0u; j < 4u && column + j < sizes.d; j++) { four[j] += before_at(at + j); }
                store_first(at, column, four);
            }
            if OF == 1u && column < sizes.e {
                let at = (head * rows + row) * sizes.e + column;
                store_second(at, column,
                    vec4(seconds[i][r], seconds[i + 1u][r], seconds[i + 2u][r], seconds[i + 3u][r]));
            }
        }
    }
}
