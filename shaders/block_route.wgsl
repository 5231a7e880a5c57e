// Lists of key blocks from products of mean queries and mean keys, a workgroup a list. The best are found by the bits of
// their scores from the top, 8 at a time, equal ones by the lower number; lists are in ascending order.
//
// SUB: the score is the mean over sub-blocks of the query block of the softmax of their products. It takes the place of
// the products of the first sub-block; without SUB, a query block has one row of products, which scale makes scores.

struct Sizes {
    // Query blocks of all heads.
    rows: u32,
    query_blocks: u32,
    key_blocks: u32,
    longest: u32,
    kept: u32,
    // Which blocks near the query block are always kept: 1 those that hold one of its tokens, 2 those of its run.
    own: u32,
    // How many runs are always kept.
    always: u32,
    // Sub-blocks of all query blocks of a head.
    sub_blocks: u32,
    scale: f32,
    always_runs: array<vec4<u32>, 8>,
    query_cut: Cut,
    key_cut: Cut,
    sub_cut: Cut,
}

//: tensors
@group(0) @binding(0) var<storage, read_write> products: array<u32>;
@group(0) @binding(1) var<storage, read_write> lists: array<u32>;
fn lists_set(i: u32, v: i32) { lists[i] = bitcast<u32>(v); }
@group(0) @binding(2) var<storage, read_write> counts: array<u32>;
fn counts_set(i: u32, v: i32) { counts[i] = bitcast<u32>(v); }
fn mass_set(i: u32, v: f32) {}
@group(0) @binding(3) var<uniform> sizes: Sizes;
//: end

//: SUB
const SUB: u32 = 0u;
//: end

//: MASS
const MASS: u32 = 0u;
//: end

fn product_at(i: u32) -> f32 { return bitcast<f32>(products[i]); }
fn product_set(i: u32, v: f32) { products[i] = bitcast<u32>(v); }

var<workgroup> tallies: array<u32, 256>;
var<workgroup> histogram: array<atomic<u32>, 256>;
// The bin of the last block that is taken, and how many of that bin are.
var<workgroup> found: vec2<u32>;

// The sum over the threads before this one, and over all.
fn tally(value: u32, thread: u32) -> vec2<u32> {
    tallies[thread] = value;
    workgroupBarrier();
    for (var step = 1u; step < 256u; step *= 2u) {
        var before = 0u;
        if thread >= step { before = tallies[thread - step]; }
        workgroupBarrier();
        tallies[thread] += before;
        workgroupBarrier();
    }
    let sums = vec2(tallies[thread] - value, tallies[255]);
    workgroupBarrier();
    return sums;
}

// Unsigned numbers in the order of floats.
fn ordered(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

// Whether a block is always kept, for the query block of these tokens in this run.
fn is_kept(block: u32, range: vec2<u32>, run: u32) -> bool {
    if sizes.always == 0u && sizes.own == 0u { return false; }
    let tokens = tokens_of(sizes.key_cut, block);
    let own = place_of(sizes.key_cut, tokens.x).y;
    var kept = (sizes.own == 2u && own == run) || (sizes.own == 1u && tokens.x < range.y && tokens.y > range.x);
    for (var i = 0u; i < sizes.always; i++) { kept = kept || sizes.always_runs[i / 4u][i % 4u] == own; }
    return kept;
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) count: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let row = id.y * count.x + id.x;
    if row >= sizes.rows { return; }
    let range = tokens_of(sizes.query_cut, row % sizes.query_blocks);
    let run = place_of(sizes.query_cut, range.x).y;
    let blocks = sizes.key_blocks;
    let lowest = -3.4e38;
    let sub = place_of(sizes.sub_cut, range.x).x;
    let subs = (range.y - range.x + sizes.sub_cut.size - 1u) / sizes.sub_cut.size;
    let scores = (row / sizes.query_blocks * sizes.sub_blocks + sub) * blocks;
    if SUB == 1u {
        for (var part = 0u; part < subs; part++) {
            let start = scores + part * blocks;
            var most = lowest;
            for (var j = thread; j < blocks; j += 256u) { most = max(most, sizes.scale * product_at(start + j)); }
            most = most_of_workgroup(most, thread);
            var sum = 0.0;
            for (var j = thread; j < blocks; j += 256u) {
                sum += exponential(sizes.scale * product_at(start + j) - most);
            }
            sum = sum_of_workgroup(sum, thread);
            for (var j = thread; j < blocks; j += 256u) {
                let share = exponential(sizes.scale * product_at(start + j) - most) / sum / f32(subs);
                if part == 0u {
                    product_set(scores + j, share);
                } else {
                    product_set(scores + j, product_at(scores + j) + share);
                }
            }
        }
    } else {
        for (var j = thread; j < blocks; j += 256u) { product_set(scores + j, sizes.scale * product_at(scores + j)); }
    }
    storageBarrier();
    workgroupBarrier();

    // A thread looks at a stretch of blocks.
    let stretch = (blocks + 255u) / 256u;
    let first = min(thread * stretch, blocks);
    let last = min(first + stretch, blocks);
    var fixed = 0u;
    for (var j = first; j < last; j++) { fixed += u32(is_kept(j, range, run)); }
    fixed = tally(fixed, thread).y;
    var missing = sizes.kept - min(sizes.kept, fixed);
    let choose = missing > 0u;
    // The score of the last block that is taken, and how many blocks of that score are.
    var threshold = 0u;
    var mask = 0u;
    for (var turn = 0u; turn < 4u; turn++) {
        let shift = 24u - 8u * turn;
        atomicStore(&histogram[thread], 0u);
        workgroupBarrier();
        for (var j = first; j < last; j++) {
            let bits = ordered(product_at(scores + j));
            if (bits & mask) == threshold && !is_kept(j, range, run) {
                atomicAdd(&histogram[(bits >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        // From the top bin down, a thread has one.
        let own = atomicLoad(&histogram[255u - thread]);
        let above = tally(own, thread).x;
        let here = above < missing && (missing <= above + own || thread == 255u);
        if here || (missing == 0u && thread == 0u) { found = vec2(255u - thread, missing - above); }
        workgroupBarrier();
        threshold |= found.x << shift;
        mask |= 255u << shift;
        missing = found.y;
        workgroupBarrier();
    }

    var most = lowest;
    var total = 1.0;
    if MASS == 1u && SUB == 0u {
        for (var j = first; j < last; j++) { most = max(most, product_at(scores + j)); }
        most = most_of_workgroup(most, thread);
        var sum = 0.0;
        for (var j = first; j < last; j++) { sum += exponential(product_at(scores + j) - most); }
        total = sum_of_workgroup(sum, thread);
    }
    var equals = 0u;
    for (var j = first; j < last; j++) {
        equals += u32(ordered(product_at(scores + j)) == threshold && !is_kept(j, range, run));
    }
    let before = tally(equals, thread).x;
    // Counts what this thread takes, then writes it.
    var at = 0u;
    var mass = 0.0;
    for (var turn = 0u; turn < 2u; turn++) {
        var rank = before;
        var taken = 0u;
        for (var j = first; j < last; j++) {
            let score = product_at(scores + j);
            let bits = ordered(score);
            var take = is_kept(j, range, run);
            if !take && bits == threshold {
                take = choose && rank < missing;
                rank++;
            } else if !take {
                take = choose && bits > threshold;
            }
            if take && turn == 1u {
                lists_set(row * sizes.longest + at + taken, i32(j));
                if SUB == 1u { mass += score; } else { mass += exponential(score - most) / total; }
            }
            taken += u32(take);
        }
        if turn == 0u {
            let places = tally(taken, thread);
            at = places.x;
            for (var i = places.y + thread; i < sizes.longest; i += 256u) { lists_set(row * sizes.longest + i, -1); }
            if thread == 0u { counts_set(row, i32(places.y)); }
        }
    }
    if MASS == 1u {
        mass = sum_of_workgroup(mass, thread);
        if thread == 0u { mass_set(row, mass); }
    }
}
