enable f16;
enable wgpu_cooperative_matrix;

// Attention by cooperative matrices of 16 x 16 over f16, sums in f32: softmax(scale q kᵀ) v by the online softmax. A
// workgroup takes QUERIES queries of a head, each of its subgroups 32 of them, and walks over keys, TILE at a time. A
// cooperative matrix has no elements that a thread could name: scores go by way of shared memory to threads, one a query,
// and come back as weights.
//
// Weights are powers of two under a reference that a query raises when a score exceeds it by 8: most tiles do not, and
// leave the sums where they are. Where one does, sums go by way of shared memory as well.
//
// LISTED: keys are those of the blocks in the list of the query block, and the centroids outside of it, each one more key
// whose score has the logarithm of its number of tokens added.

alias Sizes = AttentionSizes;

//: tensors
@group(0) @binding(0) var<storage, read_write> q: array<vec4<f16>>;
fn q_four(i: u32) -> vec4<f16> { return q[i]; }
@group(0) @binding(1) var<storage, read_write> k: array<vec4<f16>>;
fn k_four(i: u32) -> vec4<f16> { return k[i]; }
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f16>>;
fn v_four(i: u32) -> vec4<f16> { return v[i]; }
// What block_lists.wgsl writes.
fn lists_at(i: u32) -> i32 { return 0; }
fn centroid_keys_four(i: u32) -> vec4<f16> { return vec4<f16>(); }
fn centroid_values_four(i: u32) -> vec4<f16> { return vec4<f16>(); }
@group(0) @binding(3) var<storage, read_write> y: array<u32>;
fn y_set(i: u32, v: f32) { y[i] = bitcast<u32>(v); }
fn lse_set(i: u32, v: f32) {}
@group(0) @binding(4) var<uniform> sizes: Sizes;
//: end

const ALL = 0u;
const LISTED = 1u;

//: KEYS
const KEYS: u32 = 0u;
//: end

//: WIDTH
// Columns of queries and keys.
const WIDTH: u32 = 64u;
//: end

//: VALUES
// Columns of values.
const VALUES: u32 = 64u;
//: end

//: TILE
// Keys at once.
const TILE: u32 = 32u;
//: end

// Tiles whose keys are looked up at once.
const AHEAD: u32 = 8u;

//: TAKEN
// Words that hold a bit a key block.
const TAKEN: u32 = 1u;
//: end

//: store
// Four neighbours of a row.
fn store(at: u32, column: u32, v: vec4<f32>) {
    for (var j = 0u; j < 4u; j++) { y_set(at + j, v[j]); }
}
//: end

//: QUERIES
// Queries of a workgroup, and threads.
const QUERIES: u32 = 128u;
//: end

// The score of no key, and a reference that any key exceeds.
const NOTHING = -3.0e38;
const LOW = -1.0e38;
// By how much a score, a power of two, may exceed the reference: weights stay below 256.
const SLACK = 8.0;
const LOG2_E = 1.44269504;
const LN_2 = 0.69314718;

// Rows of shared memory are longer than what they hold: neighbours begin in other banks. All begin at multiples of 16
// bytes, as matrices must; arrays of shared memory need not, so there is one for all that is f16.
const KEY_LINE = WIDTH / 4u + 2u;
const VALUE_LINE = VALUES / 4u + 2u;
const LINE = TILE / 4u + 2u;

// Queries, to begin with; then weights of keys, keys and values.
const KEYS_AT = QUERIES * LINE;
const VALUES_AT = KEYS_AT + TILE * KEY_LINE;
var<workgroup> halves: array<vec4<f16>, max(QUERIES * KEY_LINE, VALUES_AT + TILE * VALUE_LINE)>;
var<workgroup> scores: array<vec4<f32>, QUERIES * LINE>;
// Whether the sums of a query are multiplied by what is not 1.
var<workgroup> raised: u32;
// Of every slot of twice as many tiles in turn the token or centroid, -1 where there is none, and what is added to its score.
var<workgroup> tokens: array<i32, 2u * AHEAD * TILE>;
var<workgroup> biases: array<vec4<f32>, AHEAD * TILE / 2u>;
var<workgroup> list_length: u32;
var<workgroup> taken: array<atomic<u32>, TAKEN>;

fn is_taken(block: u32) -> bool { return ((atomicLoad(&taken[block / 32u]) >> (block % 32u)) & 1u) == 1u; }

// Where the tables behind all lists begin.
fn table() -> u32 { return sizes.heads * sizes.query_blocks * (sizes.longest + 1u); }

// What stands in a slot of a tile, of which the first `plain` hold tokens and the others centroids.
fn fill(tile: u32, slot: u32, plain: u32, listed: u32, list: u32) {
    var token = -1;
    var bias = NOTHING;
    if tile < plain {
        let at = tile * TILE + slot;
        if at < listed * sizes.key_cut.size {
            let range = table() + 2u * u32(lists_at(list + at / sizes.key_cut.size));
            let own = lists_at(range) + i32(at % sizes.key_cut.size);
            if own < lists_at(range + 1u) {
                token = own;
                bias = 0.0;
            }
        }
    } else {
        let at = (tile - plain) * TILE + slot;
        if at < sizes.centroids {
            let place = table() + 2u * (sizes.key_blocks + at);
            if !is_taken(u32(lists_at(place))) {
                token = i32(at);
                bias = log2(f32(lists_at(place + 1u)));
            }
        }
    }
    let to = tile % (2u * AHEAD) * TILE + slot;
    tokens[to] = token;
    biases[to / 4u][to % 4u] = bias;
}

// What stands in the slots of the tiles from `tile` on.
fn fill_tiles(tile: u32, thread: u32, plain: u32, listed: u32, list: u32) {
    for (var i = 0u; i < AHEAD * TILE / QUERIES; i++) {
        let slot = i * QUERIES + thread;
        fill(tile + slot / TILE, slot % TILE, plain, listed, list);
    }
}

fn token_of(tile: u32, slot: u32) -> i32 {
    if KEYS == LISTED { return tokens[tile % (2u * AHEAD) * TILE + slot]; }
    let token = tile * TILE + slot;
    return select(-1, i32(token), token < sizes.m);
}

fn key_part(head: u32, tile: u32, plain: u32, part: u32) -> vec4<f16> {
    let token = token_of(tile, part / (WIDTH / 4u));
    let column = part % (WIDTH / 4u);
    if token < 0 { return vec4<f16>(); }
    if KEYS == LISTED && tile >= plain {
        return centroid_keys_four((head * sizes.centroids + u32(token)) * (WIDTH / 4u) + column);
    }
    return k_four(row_of(sizes.k_rows, sizes.image_heads, head, u32(token)) / 4u + column);
}

fn value_part(head: u32, tile: u32, plain: u32, part: u32) -> vec4<f16> {
    let token = token_of(tile, part / (VALUES / 4u));
    let column = part % (VALUES / 4u);
    if token < 0 { return vec4<f16>(); }
    if KEYS == LISTED && tile >= plain {
        return centroid_values_four((head * sizes.centroids + u32(token)) * (VALUES / 4u) + column);
    }
    return v_four(row_of(sizes.v_rows, sizes.image_heads, head, u32(token)) / 4u + column);
}

@compute @workgroup_size(QUERIES)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32, @builtin(subgroup_id) subgroup: u32) {
    let blocks = sizes.query_blocks * sizes.tiles;
    let head = (id.y * count.x + id.x) / blocks;
    if head >= sizes.heads { return; }
    let block = (id.y * count.x + id.x) % blocks;
    let query_block = block / sizes.tiles;
    let list = (head * sizes.query_blocks + query_block) * (sizes.longest + 1u) + 1u;
    var first = block * QUERIES;
    var last = min(sizes.n, first + QUERIES);
    var listed = 0u;
    var plain = (sizes.m + TILE - 1u) / TILE;
    var tiles = plain;
    if KEYS == LISTED {
        let range = tokens_of(sizes.query_cut, query_block);
        first = range.x + block % sizes.tiles * QUERIES;
        last = min(range.y, first + QUERIES);
        if thread == 0u { list_length = select(u32(lists_at(list - 1u)), 0xffffffffu, first >= range.y); }
        for (var i = thread; i < TAKEN; i += QUERIES) { atomicStore(&taken[i], 0u); }
        let length = workgroupUniformLoad(&list_length);
        if length == 0xffffffffu { return; }
        listed = length;
        for (var i = thread; i < listed; i += QUERIES) {
            let block = u32(lists_at(list + i));
            atomicOr(&taken[block / 32u], 1u << (block % 32u));
        }
        plain = (listed * sizes.key_cut.size + TILE - 1u) / TILE;
        tiles = plain + (sizes.centroids + TILE - 1u) / TILE;
    }

    for (var i = thread; i < QUERIES * WIDTH / 4u; i += QUERIES) {
        let row = i / (WIDTH / 4u);
        let column = i % (WIDTH / 4u);
        var own = vec4<f16>();
        if first + row < last { own = q_four(row_of(sizes.q_rows, sizes.image_heads, head, first + row) / 4u + column); }
        halves[row * KEY_LINE + column] = own;
    }
    if thread == 0u { raised = 0u; }
    workgroupBarrier();
    let strip = subgroup * 32u;
    // Of two strips of sixteen rows.
    var queries: array<coop_mat16x16<f16, A>, WIDTH / 8u>;
    for (var i = 0u; i < WIDTH / 16u; i++) {
        queries[2u * i] = coopLoadT<coop_mat16x16<f16, A>>(&halves[strip * KEY_LINE + 4u * i], KEY_LINE);
        queries[2u * i + 1u] = coopLoadT<coop_mat16x16<f16, A>>(&halves[(strip + 16u) * KEY_LINE + 4u * i], KEY_LINE);
    }
    if KEYS == LISTED { fill_tiles(0u, thread, plain, listed, list); }
    workgroupBarrier();
    for (var i = thread; i < TILE * WIDTH / 4u; i += QUERIES) {
        halves[KEYS_AT + i / (WIDTH / 4u) * KEY_LINE + i % (WIDTH / 4u)] = key_part(head, 0u, plain, i);
    }
    workgroupBarrier();

    let own = thread * LINE;
    let scale = sizes.scale * LOG2_E;
    var top = LOW;
    var total = 0.0;
    var sums: array<coop_mat16x16<f32, C>, VALUES / 8u>;
    for (var tile = 0u; tile < tiles; tile++) {
        // Asks for what will be stored once others are done with what lies there.
        var next_keys: array<vec4<f16>, TILE * WIDTH / 4u / QUERIES>;
        var own_values: array<vec4<f16>, TILE * VALUES / 4u / QUERIES>;
        for (var i = 0u; i < TILE * VALUES / 4u / QUERIES; i++) {
            own_values[i] = value_part(head, tile, plain, i * QUERIES + thread);
        }
        if tile + 1u < tiles {
            for (var i = 0u; i < TILE * WIDTH / 4u / QUERIES; i++) {
                next_keys[i] = key_part(head, tile + 1u, plain, i * QUERIES + thread);
            }
        }
        for (var j = 0u; j < TILE / 16u; j++) {
            var upper: coop_mat16x16<f32, C>;
            var lower: coop_mat16x16<f32, C>;
            for (var i = 0u; i < WIDTH / 16u; i++) {
                let part = coopLoad<coop_mat16x16<f16, B>>(&halves[KEYS_AT + 16u * j * KEY_LINE + 4u * i], KEY_LINE);
                upper = coopMultiplyAdd(queries[2u * i], part, upper);
                lower = coopMultiplyAdd(queries[2u * i + 1u], part, lower);
            }
            coopStoreT(upper, &scores[strip * LINE + 4u * j], LINE);
            coopStoreT(lower, &scores[(strip + 16u) * LINE + 4u * j], LINE);
        }
        workgroupBarrier();

        for (var i = 0u; i < TILE * VALUES / 4u / QUERIES; i++) {
            let part = i * QUERIES + thread;
            halves[VALUES_AT + part / (VALUES / 4u) * VALUE_LINE + part % (VALUES / 4u)] = own_values[i];
        }
        for (var i = 0u; i < TILE * WIDTH / 4u / QUERIES; i++) {
            let part = i * QUERIES + thread;
            halves[KEYS_AT + part / (WIDTH / 4u) * KEY_LINE + part % (WIDTH / 4u)] = next_keys[i];
        }
        if KEYS == LISTED && tile % AHEAD == 0u && tile + AHEAD < tiles {
            fill_tiles(tile + AHEAD, thread, plain, listed, list);
        }
        var line: array<vec4<f32>, TILE / 4u>;
        var most = vec4(NOTHING);
        for (var i = 0u; i < TILE / 4u; i++) {
            line[i] = scale * scores[own + i];
            if KEYS == LISTED {
                line[i] += biases[tile % (2u * AHEAD) * (TILE / 4u) + i];
            } else if tile + 1u == tiles {
                let column = vec4(tile * TILE + 4u * i) + vec4(0u, 1u, 2u, 3u);
                line[i] = select(vec4(NOTHING), line[i], column < vec4(sizes.m));
            }
            most = max(most, line[i]);
        }
        let greatest = max(max(most.x, most.y), max(most.z, most.w));
        var factor = 1.0;
        if greatest > top + SLACK {
            factor = exp2(top - greatest);
            top = greatest;
            if tile > 0u { raised = 1u; }
        }
        var sum = vec4(0.0);
        for (var i = 0u; i < TILE / 4u; i++) {
            let four = exp2(line[i] - top);
            sum += four;
            halves[own + i] = vec4<f16>(four);
        }
        total = fma(total, factor, sum.x + sum.y + sum.z + sum.w);
        if workgroupUniformLoad(&raised) != 0u {
            if thread == 0u { raised = 0u; }
            for (var i = 0u; i < VALUES / 16u; i++) {
                coopStoreT(sums[2u * i], &scores[strip * LINE], LINE);
                coopStoreT(sums[2u * i + 1u], &scores[(strip + 16u) * LINE], LINE);
                workgroupBarrier();
                for (var j = 0u; j < 4u; j++) { scores[own + j] *= factor; }
                workgroupBarrier();
                sums[2u * i] = coopLoadT<coop_mat16x16<f32, C>>(&scores[strip * LINE], LINE);
                sums[2u * i + 1u] = coopLoadT<coop_mat16x16<f32, C>>(&scores[(strip + 16u) * LINE], LINE);
                workgroupBarrier();
            }
        }
        for (var j = 0u; j < TILE / 16u; j++) {
            let upper = coopLoadT<coop_mat16x16<f16, A>>(&halves[strip * LINE + 4u * j], LINE);
            let lower = coopLoadT<coop_mat16x16<f16, A>>(&halves[(strip + 16u) * LINE + 4u * j], LINE);
            for (var i = 0u; i < VALUES / 16u; i++) {
                let at = VALUES_AT + 16u * j * VALUE_LINE + 4u * i;
                let columns = coopLoadT<coop_mat16x16<f16, B>>(&halves[at], VALUE_LINE);
                sums[2u * i] = coopMultiplyAdd(upper, columns, sums[2u * i]);
                sums[2u * i + 1u] = coopMultiplyAdd(lower, columns, sums[2u * i + 1u]);
            }
        }
    }

    let under = select(total, 1.0, total == 0.0);
    let token = first + thread;
    let start = row_of(sizes.y_rows, sizes.image_heads, head, token);
    for (var i = 0u; i < VALUES / 16u; i++) {
        coopStoreT(sums[2u * i], &scores[strip * LINE], LINE);
        coopStoreT(sums[2u * i + 1u], &scores[(strip + 16u) * LINE], LINE);
        workgroupBarrier();
        if token < last {
            for (var j = 0u; j < 4u; j++) {
                let column = 16u * i + 4u * j;
                store(start + column, column, scores[own + j] / under);
            }
        }
        workgroupBarrier();
    }
    if token < last { lse_set(head * sizes.n + token, LN_2 * top + log(total)); }
}
