// Attention of any head dimensions up to 256, any lengths, in f32: softmax(scale q kᵀ) v by the online softmax (Milakov,
// Gimelshein 2018; Dao et al. 2022), so that no row of scores is ever stored. A workgroup takes 64 queries of a head and
// walks over keys, 64 at a time, in slices of shared memory; a thread computes 4 x 4 scores, and of the sums of values 4
// rows of 4 columns in every 64.
//
// LISTED: keys are those of the blocks in the list of the query block, and the centroids outside of it, each one more key
// whose score has the logarithm of its number of tokens added.
//
// REST: weights are the products of q and k, features already, over the keys outside the list, over their sum + 1e-6.

struct Sizes {
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
    centroid_cut: Cut,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> q: array<u32>;
fn q_at(i: u32) -> f32 { return bitcast<f32>(q[i]); }
@group(0) @binding(1) var<storage, read_write> k: array<u32>;
fn k_at(i: u32) -> f32 { return bitcast<f32>(k[i]); }
@group(0) @binding(2) var<storage, read_write> v: array<u32>;
fn v_at(i: u32) -> f32 { return bitcast<f32>(v[i]); }
// Of every query block the length of its list, then the list.
fn lists_at(i: u32) -> i32 { return 0; }
fn centroid_keys_at(i: u32) -> f32 { return 0.0; }
fn centroid_values_at(i: u32) -> f32 { return 0.0; }
fn residual_at(i: u32) -> f32 { return 0.0; }
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

fn row_of(rows: vec4<u32>, head: u32, token: u32) -> u32 {
    return head / sizes.image_heads * rows.x + head % sizes.image_heads * rows.y + token * rows.z + rows.w;
}

fn query_part(head: u32, token: u32, column: u32) -> vec4<f32> {
    let start = row_of(sizes.q_rows, head, token) + column;
    var part = vec4(0.0);
    for (var j = 0u; j < 4u && column + j < sizes.d; j++) { part[j] = q_at(start + j); }
    return part;
}

fn key_part(head: u32, slot: u32, central: bool, column: u32) -> vec4<f32> {
    var part = vec4(0.0);
    if tokens[slot] < 0 { return part; }
    let token = u32(tokens[slot]);
    if central {
        let start = (head * sizes.centroids + token) * sizes.d + column;
        for (var j = 0u; j < 4u && column + j < sizes.d; j++) { part[j] = centroid_keys_at(start + j); }
    } else {
        let start = row_of(sizes.k_rows, head, token) + column;
        for (var j = 0u; j < 4u && column + j < sizes.d; j++) { part[j] = k_at(start + j); }
    }
    return part;
}

fn value_part(head: u32, slot: u32, central: bool, column: u32) -> vec4<f32> {
    var part = vec4(0.0);
    if tokens[slot] < 0 { return part; }
    let token = u32(tokens[slot]);
    if central {
        let start = (head * sizes.centroids + token) * sizes.e + column;
        for (var j = 0u; j < 4u && column + j < sizes.e; j++) { part[j] = centroid_values_at(start + j); }
    } else {
        let start = row_of(sizes.v_rows, head, token) + column;
        for (var j = 0u; j < 4u && column + j < sizes.e; j++) { part[j] = v_at(start + j); }
    }
    return part;
}

// What stands in a slot, of which the first `plain` are tokens and the others centroids.
fn fill(slot: u32, at: u32, plain: u32, list: u32) {
    var token = -1;
    var bias = 0.0;
    if KEYS == LISTED && at >= plain {
        if at < plain + sizes.centroids {
            let range = tokens_of(sizes.centroid_cut, at - plain);
            if !is_taken(place_of(sizes.key_cut, range.x).x) { token = i32(at - plain); }
            bias = log(f32(range.y - range.x));
        }
    } else if at < plain {
        if KEYS == LISTED {
            let range = tokens_of(sizes.key_cut, u32(lists_at(list + at / sizes.key_cut.size)));
            let own = range.x + at % sizes.key_cut.size;
            if own < range.y { token = i32(own); }
        } else if KEYS == ALL || !is_taken(place_of(sizes.key_cut, at).x) {
            token = i32(at);
        }
    }
    tokens[slot] = token;
    biases[slot] = bias;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let across = thread % 16u;
    let down = thread / 16u;
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
        for (var i = thread; i < TAKEN; i += 256u) { atomicStore(&taken[i], 0u); }
        listed = workgroupUniformLoad(&list_length);
        for (var i = thread; i < listed; i += 256u) {
            let block = u32(lists_at(list + i));
            atomicOr(&taken[block / 32u], 1u << (block % 32u));
        }
    }

    var sums: array<vec4<f32>, WIDTH / 16u>;
    var top = vec4(NOTHING);
    var total = vec4(0.0);
    let plain = select(sizes.m, listed * sizes.key_cut.size, KEYS == LISTED);
    let slots = plain + select(0u, sizes.centroids, KEYS == LISTED);
    for (var start = 0u; start < slots;) {
        // A tile holds tokens or centroids, not both.
        let central = start >= plain;
        let end = select(plain, slots, central);
        workgroupBarrier();
        if thread < 64u { fill(thread, select(slots, start + thread, start + thread < end), plain, list); }
        workgroupBarrier();

        // A vector a column: four rows.
        var scores: array<vec4<f32>, 4>;
        for (var column = 0u; column < sizes.d; column += 16u) {
            let line = thread / 4u;
            let part = thread % 4u;
            var own = vec4(0.0);
            if first + line < last { own = query_part(head, first + line, column + 4u * part); }
            slices[part * 64u + line] = own;
            slices[256u + part * 64u + line] = key_part(head, line, central, column + 4u * part);
            workgroupBarrier();
            for (var i = 0u; i < 4u; i++) {
                let at = i * 64u + 4u * down;
                let a = array(slices[at], slices[at + 1u], slices[at + 2u], slices[at + 3u]);
                for (var c = 0u; c < 4u; c++) {
                    let b = slices[256u + i * 64u + across + 16u * c];
                    scores[c] += vec4(dot(a[0], b), dot(a[1], b), dot(a[2], b), dot(a[3], b));
                }
            }
            workgroupBarrier();
        }
        if KEYS != REST {
            var most = vec4(NOTHING);
            for (var c = 0u; c < 4u; c++) {
                let slot = across + 16u * c;
                scores[c] = fma(scores[c], vec4(sizes.scale), vec4(biases[slot]));
                most = max(most, select(vec4(NOTHING), scores[c], tokens[slot] >= 0));
            }
            weights[down * 16u + across] = most;
            workgroupBarrier();
            most = top;
            for (var i = 0u; i < 16u; i++) { most = max(most, weights[down * 16u + i]); }
            workgroupBarrier();
            let factor = exp(top - most);
            top = most;
            total *= factor;
            for (var i = 0u; i < WIDTH / 16u; i++) { sums[i] *= factor[i % 4u]; }
            for (var c = 0u; c < 4u; c++) { scores[c] = exp(scores[c] - most); }
        }
        for (var c = 0u; c < 4u; c++) {
            // Key `across` of these 16.
            weights[across * 16u + down] = select(vec4(0.0), scores[c], tokens[across + 16u * c] >= 0);
            for (var span = 0u; span < WIDTH; span += SPAN) {
                for (var i = thread; i < 4u * SPAN; i += 256u) {
                    let column = span + i % (SPAN / 4u) * 4u;
                    slices[i] = value_part(head, 16u * c + i / (SPAN / 4u), central, column);
                }
                workgroupBarrier();
                for (var j = 0u; j < 16u; j++) {
                    let a = weights[j * 16u + down];
                    if span == 0u { total += a; }
                    for (var part = 0u; part < SPAN; part += 64u) {
                        let b = slices[j * (SPAN / 4u) + part / 4u + across];
                        let at = (span + part) / 16u;
                        for (var r = 0u; r < 4u; r++) { sums[at + r] = fma(vec4(a[r]), b, sums[at + r]); }
                    }
                }
                workgroupBarrier();
            }
        }
        start = min(start + 64u, end);
    }
    for (var r = 0u; r < 4u; r++) {
        let token = first + 4u * down + r;
        if token >= last { break; }
        let under = select(select(total[r], total[r] + 1e-6, KEYS == REST), 1.0, slots == 0u);
        let start = row_of(sizes.y_rows, head, token);
        for (var column = 4u * across; column < sizes.e; column += 64u) {
            var v = sums[column / 64u * 4u + r] / under;
            for (var j = 0u; j < 4u; j++) { v[j] += residual_at(start + min(column + j, sizes.e - 1u)); }
            store(start + column, column, v);
        }
        if across == 0u { lse_set(head * sizes.n + token, top[r] + log(total[r])); }
    }
}
