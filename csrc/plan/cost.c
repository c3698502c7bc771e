/* What CC_AUTO stands for. A choice must be the same on every member, so it is a pure function of
 * the call and the group's size, with constants that are the same in every build. They describe a
 * data-centre network (some 30 us for a message, some GB/s for its bytes); they are not tuned to
 * any machine. docs/algorithms.md has the counts of steps and bytes behind them. */
#include "csrc/base/limits.h"
#include "csrc/plan/plan.h"

static const struct {
    /* all_reduce, direct: one step, but (m - 1) n bytes and m - 1 reductions on every member.
     * Eager, or it would wait for the receivers and lose what it is for. From four members on, m - 1
     * sends cost a member more than doubling's two steps do (measured: docs/performance.md). */
    uint64_t reduce_direct_bytes;
    uint32_t reduce_direct_size;
    /* all_reduce, doubling: log2(m) steps of n bytes against the ring's 2(m - 1) steps of n/m. It
     * wins while messages cost more to start than to carry: short vectors, or short chunks. */
    uint64_t reduce_doubling_bytes;
    uint64_t reduce_doubling_chunk_bytes;
    /* broadcast, direct: the root sends (m - 1) n; the chain sends n after m - 1 hops of one
     * segment each. Both grow with m alike, so the length alone decides. */
    uint64_t broadcast_direct_bytes;
    /* all_gather: both carry (m - 1) n bytes. Direct takes one step, but many senders at one
     * receiver's door congest it when the total is long. */
    uint64_t gather_direct_bytes;
    uint64_t gather_direct_total_bytes;
} CUTOFF = {
    .reduce_direct_bytes = CC_EAGER_BYTES,
    .reduce_direct_size = 3,
    .reduce_doubling_bytes = 64 << 10,
    .reduce_doubling_chunk_bytes = 4 << 10,
    .broadcast_direct_bytes = 256 << 10,
    .gather_direct_bytes = CC_EAGER_BYTES,
    .gather_direct_total_bytes = 256 << 10,
};

static cc_algorithm choose_all_reduce(uint32_t size, uint64_t bytes) {
    if (bytes <= CUTOFF.reduce_direct_bytes && size <= CUTOFF.reduce_direct_size) {
        return CC_DIRECT;
    }
    if (bytes <= CUTOFF.reduce_doubling_bytes ||
        bytes / size < CUTOFF.reduce_doubling_chunk_bytes) {
        return CC_RECURSIVE_DOUBLING;
    }
    return CC_RING;
}

static cc_algorithm choose_all_gather(uint32_t size, uint64_t bytes) {
    if (bytes <= CUTOFF.gather_direct_bytes || size == 2 ||
        bytes <= CUTOFF.gather_direct_total_bytes / (size - 1)) {
        return CC_DIRECT;
    }
    return CC_RING;
}

cc_algorithm cc__plan_choose(cc_kind kind, uint32_t size, uint64_t count, uint32_t element_bytes) {
    if (size < 2 || element_bytes == 0) {
        return CC_DIRECT;
    }
    uint64_t bytes = count > UINT64_MAX / element_bytes ? UINT64_MAX : count * element_bytes;
    switch (kind) {
    case CC_ALL_REDUCE: return choose_all_reduce(size, bytes);
    case CC_ALL_GATHER: return choose_all_gather(size, bytes);
    case CC_BROADCAST:
        return bytes <= CUTOFF.broadcast_direct_bytes || size == 2 ? CC_DIRECT : CC_RING;
    case CC_BARRIER:
    case CC_BOUNDARY: break;
    }
    return CC_DIRECT;
}
