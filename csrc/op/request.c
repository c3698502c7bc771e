#include "csrc/op/request.h"

#include "csrc/base/limits.h"
#include "csrc/kernels/kernels.h"

#define BYTES_MAX (UINT64_C(1) << 60) /* of one buffer: sums of lengths cannot overflow */

static const unsigned TRAITS[] = {
    [CC_ALL_REDUCE] = CC__HAS_DATA | CC__HAS_OP,
    [CC_BROADCAST] = CC__HAS_DATA | CC__HAS_ROOT | CC__IN_AT_ROOT,
    [CC_ALL_GATHER] = CC__HAS_DATA | CC__OUT_BLOCKS,
    [CC_BARRIER] = 0,
    [CC_BOUNDARY] = 0,
    [CC_REDUCE] = CC__HAS_DATA | CC__HAS_OP | CC__HAS_ROOT | CC__OUT_AT_ROOT,
    [CC_GATHER] = CC__HAS_DATA | CC__HAS_ROOT | CC__OUT_BLOCKS | CC__OUT_AT_ROOT,
    [CC_SCATTER] = CC__HAS_DATA | CC__HAS_ROOT | CC__IN_BLOCKS | CC__IN_AT_ROOT | CC__NEEDS_ALL,
    [CC_REDUCE_SCATTER] = CC__HAS_DATA | CC__HAS_OP | CC__IN_BLOCKS | CC__NEEDS_ALL,
    [CC_ALL_TO_ALL] = CC__HAS_DATA | CC__IN_BLOCKS | CC__OUT_BLOCKS | CC__NEEDS_ALL,
    [CC_SEND] = CC__HAS_DATA | CC__PAIRWISE,
    [CC_RECEIVE] = CC__HAS_DATA | CC__PAIRWISE,
};

unsigned cc__kind_traits(cc_kind kind) {
    return (unsigned)kind < sizeof TRAITS / sizeof *TRAITS ? TRAITS[kind] : 0;
}

/* ---- checks ------------------------------------------------------------------------------- */

/* Whether the buffers' lengths stay below the bound. */
static bool counts_fit(const cc_request *request, size_t element) {
    uint64_t most = BYTES_MAX / element, world = request->world;
    bool blocks = cc__kind_traits(request->kind) & CC__BLOCKS;
    if (!request->counts) return request->count <= most / (blocks && world > 0 ? world : 1);
    const uint64_t *lists[2] = {request->counts, request->receive_counts};
    for (int list = 0; list < 2 && lists[list]; list++) {
        uint64_t total = 0;
        for (uint32_t rank = 0; rank < world; rank++) {
            if (lists[list][rank] > most - total) return false;
            total += lists[list][rank];
        }
    }
    return true;
}

static const char *counts_fault(const cc_request *request) {
    unsigned traits = cc__kind_traits(request->kind);
    if (request->world > CC_MEMBERS_MAX) return "world is more than a group can have";
    if (request->counts == NULL)
        return request->receive_counts ? "receive_counts without counts" : NULL;
    if (!(traits & CC__BLOCKS)) return "this operation has no blocks to count";
    if (request->count != 0) return "count must be 0 where there are counts";
    bool two = request->kind == CC_ALL_TO_ALL;
    if (two != (request->receive_counts != NULL))
        return two ? "receive_counts are missing" : "receive_counts belong to all_to_all alone";
    return NULL;
}

const char *cc__request_fault(const cc_request *request) {
    if (request->kind < CC_ALL_REDUCE || request->kind > CC_RECEIVE) return "no such operation";
    unsigned traits = cc__kind_traits(request->kind);
    if (request->lane >= CC_LANES_MAX) return "lane must be below 16";
    if (request->kind == CC_BOUNDARY && request->lane != 0) return "admit and leave are of lane 0";
    if (!(traits & CC__HAS_DATA)) return NULL;
    size_t element = cc_dtype_bytes(request->dtype);
    if (element == 0) return "no such dtype";
    if ((traits & CC__PAIRWISE) && request->tag >= CC_TAGS) return "tag must be below 2^31";
    const char *fault = counts_fault(request);
    if (fault) return fault;
    return counts_fit(request, element) ? NULL : "count is too large";
}

const char *cc__request_unsupported(const cc_request *request) {
    unsigned traits = cc__kind_traits(request->kind);
    if ((traits & CC__HAS_OP) && !cc__reduce_supports(request->dtype, request->op))
        return "this reduction is not defined for this dtype";
    if (request->algorithm != CC_AUTO && !(traits & CC__PAIRWISE) &&
        !cc__plan_supports(request->kind, request->algorithm))
        return "this algorithm cannot do this operation";
    return NULL;
}

/* ---- geometry ----------------------------------------------------------------------------- */

uint64_t cc__request_block(const cc_request *request, uint32_t rank, bool receive) {
    if (request->counts == NULL) return request->count;
    return receive && request->receive_counts ? request->receive_counts[rank]
                                              : request->counts[rank];
}

uint64_t cc__request_total(const cc_request *request, bool receive) {
    if (!(cc__kind_traits(request->kind) & CC__BLOCKS)) return request->count;
    if (request->counts == NULL) return request->count * request->world;
    uint64_t total = 0;
    for (uint32_t rank = 0; rank < request->world; rank++)
        total += cc__request_block(request, rank, receive);
    return total;
}

/* Elements of one buffer: it holds all blocks, or this rank's, or has no blocks at all. */
static uint64_t buffer_bytes(const cc_request *request, uint32_t rank, bool out) {
    unsigned traits = cc__kind_traits(request->kind);
    unsigned at_root = out ? CC__OUT_AT_ROOT : CC__IN_AT_ROOT;
    if (!(traits & CC__HAS_DATA) || ((traits & at_root) && rank != request->root)) return 0;
    if (request->kind == (out ? CC_SEND : CC_RECEIVE)) return 0;
    uint64_t element = cc_dtype_bytes(request->dtype);
    bool whole = traits & (out ? CC__OUT_BLOCKS : CC__IN_BLOCKS);
    if (whole || !(traits & CC__BLOCKS)) return cc__request_total(request, out) * element;
    return cc__request_block(request, rank, out) * element;
}

uint64_t cc__request_in_bytes(const cc_request *request, uint32_t rank) {
    return buffer_bytes(request, rank, false);
}

uint64_t cc__request_out_bytes(const cc_request *request, uint32_t rank) {
    return buffer_bytes(request, rank, true);
}

bool cc__request_overlaps(const cc_request *request, uint32_t rank) {
    uint64_t in_bytes = cc__request_in_bytes(request, rank);
    uint64_t out_bytes = cc__request_out_bytes(request, rank);
    uintptr_t in = (uintptr_t)request->in, out = (uintptr_t)request->out;
    return in_bytes > 0 && out_bytes > 0 && in < out + out_bytes && out < in + in_bytes;
}

bool cc__request_in_place(const cc_request *request, uint32_t rank) {
    unsigned blocks = cc__kind_traits(request->kind) & CC__BLOCKS;
    uintptr_t in = (uintptr_t)request->in, out = (uintptr_t)request->out;
    uint64_t before = 0;
    for (uint32_t lower = 0; blocks && lower < rank; lower++)
        before += cc__request_block(request, lower, false);
    before *= cc_dtype_bytes(request->dtype);
    if (blocks == CC__BLOCKS) return false;
    return blocks == CC__IN_BLOCKS ? out == in + before : in == out + before;
}

void cc__request_blocks(const cc_request *request, uint32_t size, const uint32_t *ranks,
                        bool receive, cc__block *out) {
    uint64_t offset = 0, element = cc_dtype_bytes(request->dtype);
    for (uint32_t rank = 0, i = 0; i < size; rank++) {
        uint64_t bytes = cc__request_block(request, rank, receive) * element;
        if (ranks[i] == rank) out[i++] = (cc__block){offset, bytes};
        offset += bytes;
    }
}

/* ---- the signature ------------------------------------------------------------------------ */

cc__signature cc__request_signature(const cc_request *request) {
    cc__signature signature = {.kind = (uint8_t)request->kind};
    unsigned traits = cc__kind_traits(request->kind);
    if (request->flags & CC_NO_RETRY) signature.flags |= CC__FINAL;
    if (request->flags & CC_WHOLE) signature.flags |= CC__WHOLE;
    if (!(traits & CC__HAS_DATA)) return signature;
    signature.dtype = (uint8_t)request->dtype;
    signature.algorithm = (uint8_t)request->algorithm;
    signature.count = request->count;
    bool input_is_lost = (traits & CC__HAS_OP) && !(request->flags & CC_PRESERVE);
    if (input_is_lost) signature.flags |= CC__FINAL;
    if (traits & CC__HAS_OP) signature.op = (uint8_t)request->op;
    if (traits & CC__HAS_ROOT) signature.root = request->root;
    if (request->counts == NULL) return signature;
    /* What a member sends to each other in an ALL_TO_ALL is its own affair; pairs compare it. */
    bool shared = request->kind != CC_ALL_TO_ALL;
    signature.count = shared ? cc__request_total(request, false) : 0;
    signature.digest = shared ? cc__counts_digest(request->counts, request->world) : 1;
    return signature;
}
