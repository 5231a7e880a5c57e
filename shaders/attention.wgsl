// Attention of any head dimensions up to 256, any lengths, in f32: softmax(scale q kᵀ) v by the online softmax (Milakov,
// Gimelshein 2018; Dao et al. 2022), so that no row of scores is ever stored. A workgroup takes 64 queries of a head and
// walks over keys, 64 at a time, in slices of shared memory; a thread computes 4·SIDE x 4·SIDE scores, and of the sums of
// values as many rows of as many columns in every 64. Its rows and columns are ACROSS apart: neighbours read neighbours.
//
// LISTED: keys are those of the blocks in the list of the query block, and the centroids outside of it, each one more key
// whose score has the logarithm of its number of tokens added.
//
// REST: weights are the products of q and k, features already, over the keys outside the list, over their sum + 1e-6.

alias Sizes = AttentionSizes;

//: tensors
@group(0) @binding(0) var<storage, read_write> q: array<u32>;
// Four elements of a row, of which so many are there.
fn q_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(q[i])); }
@group(0) @binding(1) var<storage, read_write> k: array<u32>;
fn k_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(k[i])); }
@group(0) @binding(2) var<storage, read_write> v: array<u32>;
fn v_part(i: u32, there: u32) -> vec4<f32> { return vec4(bitcast<f32>(v[i])); }
// What block_lists.wgsl writes.
fn lists_at(i: u32) -> i32 { return 0; }
fn centroid_keys_part(i: u32, there: u32) -> vec4<f32> { return vec4(0.0); }
fn centroid_values_part(i: u32, there: u32) -> vec4<f32> { return vec4(0.0); }
fn residual_part(i: u32, there: u32) -> vec4<f32> { return vec4(0.0); }
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
fn lse_set(i: u32, v: f32) {}
@group(0) @binding(4) var<uniform> sizes: Sizes;
//: end

const ALL = 0u;
const LISTED = 1u;
const REST = 2u;

//: KEYS
const KEYS: u32 = 0u;
//: end

//: WIDTH
// The greater head dimension, rounded up to 64, 128 or 256.
const WIDTH: u32 = 64u;
//: end

// Fours of rows, and of columns, that a thread computes. Two are slower: what a thread holds leaves no room.
const SIDE = 1u;

//: TAKEN
// Words that hold a bit a key block.
const TAKEN: u32 = 1u;
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u && column + j < sizes.e; j++) { y_set(at + j, v[j]); }
}
//: end

// The score of no key.
const NOTHING = -3.0e38;
// Columns of values in shared memory at once.
const SPAN = min(WIDTH, 128u);
// Threads along a side of a workgroup, and all of them.
const ACROSS = 16u / SIDE;
const THREADS = ACROSS * ACROSS;

// Sixteen columns of 64 queries in vectors of four, then of 64 keys; or 16 values.
var<workgroup> slices: array<vec4<f32>, 512>;
// Weights of 16 keys for 64 queries, a vector four queries; before that, the greatest scores.
var<workgroup> weights: array<vec4<f32>, 256>;
// Of every slot the token or centroid, -1 where there is none, and what is added to its score.
var<workgroup> tokens: array<i32, 64>;
var<workgroup> biases: array<f32, 64>;
var<workgroup> list_length: u32;
var<workgroup> taken: array<atomic<u32>, TAKEN>;

fn is_taken(block: u32) -> bool { return ((atomicLoad(&taken[block / 32u]) >> (block % 32u)) & 1u) == 1u; }

fn query_part(head: u32, token: u32, column: u32) -> vec4<f32> {
    if column >= sizes.d { return vec4(0.0); }
    return q_part(row_of(sizes.q_rows, sizes.image_heads, head, token) + column, sizes.d - column);
}

fn key_part(head: u32, slot: u32, central: bool, column: u32) -> vec4<f32> {
    if tokens[slot] < 0 || column >= sizes.d { return vec4(0.0); }
    let token = u32(tokens[slot]);
    if KEYS == LISTED && central {
        return centroid_keys_part((head * sizes.centroids + token) * sizes.d + column, sizes.d - column);
    }
    return k_part(row_of(sizes.k_rows, sizes.image_heads, head, token) + column, sizes.d - column);
}

fn value_part(head: u32, slot: u32, central: bool, column: u32) -> vec4<f32> {
    if tokens[slot] < 0 || column >= sizes.e { return vec4(0.0); }
    let token = u32(tokens[slot]);
    if KEYS == LISTED && central {
        return centroid_values_part((head * sizes.centroids + token) * sizes.e + column, sizes.e - column);
    }
    return v_part(row_of(sizes.v_rows, sizes.image_heads, head, token) + column, sizes.e - column);
}

// Where the tables behind all lists begin.
fn table() -> u32 { return sizes.heads * sizes.query_blocks * (sizes.longest + 1u); }

// What stands in a slot, of which the first `plain` are tokens and the others centroids.
fn fill(slot: u32, at: u32, plain: u32, list: u32) {
    var token = -1;
    var bias = 0.0;
    if KEYS == LISTED && at >= plain {
        if at < plain + sizes.centroids {
            let place = table() + 2u * (sizes.key_blocks + at - plain);
            if !is_taken(u32(lists_at(place))) { token = i32(at - plain); }
            bias = log(f32(lists_at(place + 1u)));
        }
    } else if at < plain {
        if KEYS == LISTED {
            let range = table() + 2u * u32(lists_at(list + at / sizes.key_cut.size));
            let own = lists_at(range) + i32(at % sizes.key_cut.size);
            if own < lists_at(range + 1u) { token = own; }
        } else if KEYS == ALL || !is_taken(place_of(sizes.key_cut, at).x) {
            token = i32(at);
        }
    }
    tokens[slot] = token;
    biases[slot] = bias;
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let across = thread % ACROSS;
    let down = thread / ACROSS;
    let blocks = sizes.query_blocks * sizes.tiles;
    let head = (id.y * count.x + id.x) / blocks;
    if head >= sizes.heads { return; }
    let tile = (id.y * count.x + id.x) % blocks;
    let query_block = tile / sizes.tiles;
    let list = (head * sizes.query_blocks + query_block) * (sizes.longest + 1u) + 1u;
    var first = tile * 64u;
    var last = min(sizes.n, first + 64u);
    var listed = 0u;
    if KEYS != ALL {
        let range = tokens_of(sizes.query_cut, query_block);
        first = range.x + tile % sizes.tiles * 64u;
        last = min(range.y, first + 64u);
        if first >= range.y { return; }
        if thread == 0u { list_length = u32(lists_at(list - 1u)); }
        for (var i = thread; i < TAKEN; i += THREADS) { atomicStore(&taken[i], 0u); }
        listed = workgroupUniformLoad(&list_length);
        for (var i = thread; i < listed; i += THREADS) {
            let block = u32(lists_at(list + i));
            atomicOr(&taken[block / 32u], 1u << (block % 32u));
        }
    }

    // A vector four rows: columns of every 64 and fours of rows in turn.
    var sums: array<vec4<f32>, WIDTH / 16u * SIDE * SIDE>;
    var top: array<vec4<f32>, SIDE>;
    var total: array<vec4<f32>, SIDE>;
    for (var p = 0u; p < SIDE; p++) { top[p] = vec4(NOTHING); }
    let plain = select(sizes.m, listed * sizes.key_cut.size, KEYS == LISTED);
    let slots = plain + select(0u, sizes.centroids, KEYS == LISTED);
    for (var start = 0u; start < slots;) {
        // A tile holds tokens or centroids, not both.
        let central = start >= plain;
        let end = select(plain, slots, central);
        workgroupBarrier();
        for (var slot = thread; slot < 64u; slot += THREADS) {
            fill(slot, select(slots, start + slot, start + slot < end), plain, list);
        }
        workgroupBarrier();

        // A vector four rows of a column.
        var scores: array<vec4<f32>, 4u * SIDE * SIDE>;
        for (var column = 0u; column < sizes.d; column += 16u) {
            for (var i = thread; i < 256u; i += THREADS) {
                let line = i / 4u;
                let part = i % 4u;
                var own = vec4(0.0);
                if first + line < last { own = query_part(head, first + line, column + 4u * part); }
                slices[part * 64u + line] = own;
                slices[256u + part * 64u + line] = key_part(head, line, central, column + 4u * part);
            }
            workgroupBarrier();
            for (var i = 0u; i < 4u; i++) {
                var a: array<vec4<f32>, 4u * SIDE>;
                for (var r = 0u; r < 4u * SIDE; r++) { a[r] = slices[i * 64u + down + ACROSS * r]; }
                for (var c = 0u; c < 4u * SIDE; c++) {
                    let b = slices[256u + i * 64u + across + ACROSS * c];
                    for (var p = 0u; p < SIDE; p++) {
                        scores[c * SIDE + p] += vec4(dot(a[4u * p], b), dot(a[4u * p + 1u], b), dot(a[4u * p + 2u], b),
                            dot(a[4u * p + 3u], b));
                    }
                }
            }
            workgroupBarrier();
        }
        if KEYS != REST {
            var most: array<vec4<f32>, SIDE>;
            for (var p = 0u; p < SIDE; p++) { most[p] = vec4(NOTHING); }
            for (var c = 0u; c < 4u * SIDE; c++) {
                let slot = across + ACROSS * c;
                for (var p = 0u; p < SIDE; p++) {
                    scores[c * SIDE + p] = fma(scores[c * SIDE + p], vec4(sizes.scale), vec4(biases[slot]));
                    most[p] = max(most[p], select(vec4(NOTHING), scores[c * SIDE + p], tokens[slot] >= 0));
                }
            }
            for (var p = 0u; p < SIDE; p++) { weights[(p * ACROSS + down) * ACROSS + across] = most[p]; }
            workgroupBarrier();
            for (var p = 0u; p < SIDE; p++) {
                most[p] = top[p];
                for (var i = 0u; i < ACROSS; i++) { most[p] = max(most[p], weights[(p * ACROSS + down) * ACROSS + i]); }
            }
            workgroupBarrier();
            for (var p = 0u; p < SIDE; p++) {
                let factor = exp(top[p] - most[p]);
                top[p] = most[p];
                total[p] *= factor;
                for (var i = 0u; i < WIDTH / 16u * SIDE; i++) { sums[i * SIDE + p] *= factor; }
                for (var c = 0u; c < 4u * SIDE; c++) { scores[c * SIDE + p] = exp(scores[c * SIDE + p] - most[p]); }
            }
        }
        // Sixteen keys at a time, SIDE of those of a thread.
        for (var part = 0u; part < 4u; part++) {
            for (var c = 0u; c < SIDE; c++) {
                let key = part * SIDE + c;
                for (var p = 0u; p < SIDE; p++) {
                    weights[((c * ACROSS + across) * SIDE + p) * ACROSS + down] =
                        select(vec4(0.0), scores[key * SIDE + p], tokens[across + ACROSS * key] >= 0);
                }
            }
            for (var span = 0u; span < WIDTH; span += SPAN) {
                for (var i = thread; i < 4u * SPAN; i += THREADS) {
                    let column = span + i % (SPAN / 4u) * 4u;
                    slices[i] = value_part(head, 16u * part + i / (SPAN / 4u), central, column);
                }
                workgroupBarrier();
                for (var j = 0u; j < 16u; j++) {
                    var a: array<vec4<f32>, SIDE>;
                    for (var p = 0u; p < SIDE; p++) {
                        a[p] = weights[(j * SIDE + p) * ACROSS + down];
                        if span == 0u { total[p] += a[p]; }
                    }
                    for (var i = 0u; i < SPAN / 64u * SIDE; i++) {
                        let b = slices[j * (SPAN / 4u) + across + ACROSS * i];
                        let at = (span / 64u * SIDE + i) * 4u;
                        for (var p = 0u; p < SIDE; p++) {
                            for (var c = 0u; c < 4u; c++) {
                                sums[(at + c) * SIDE + p] = fma(a[p], vec4(b[c]), sums[(at + c) * SIDE + p]);
                            }
                        }
                    }
                }
                workgroupBarrier();
            }
        }
        start = min(start + 64u, end);
    }
    for (var r = 0u; r < 4u * SIDE; r++) {
        let p = r / 4u;
        let token = first + down + ACROSS * r;
        if token >= last { break; }
        let sum = total[p][r % 4u];
        let under = select(select(sum, sum + 1e-6, KEYS == REST), 1.0, slots == 0u);
        let start = row_of(sizes.y_rows, sizes.image_heads, head, token);
        for (var i = 0u; i < WIDTH / 64u * SIDE; i++) {
            let column = 4u * (across + ACROSS * i);
            if column >= sizes.e { break; }
            var four = vec4(0.0);
            for (var c = 0u; c < 4u; c++) { four[c] = sums[(4u * i + c) * SIDE + p][r % 4u]; }
            store(start + column, column, four / under + residual_part(start + column, sizes.e - column));
        }
        if across == 0u { lse_set(head * sizes.n + token, top[p][r % 4u] + log(sum)); }
    }
}
