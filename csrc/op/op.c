/* The life of an operation: posted, started with a plan, perhaps begun again, finished. */
#include "csrc/op/op.h"

#include "csrc/base/pool.h"
#include "csrc/kernels/kernels.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool keep_counts(cc__op *op) {
    uint32_t world = op->request.world;
    if (op->request.counts == NULL) return true;
    op->counts = calloc(2u * world + 1, sizeof *op->counts);
    if (op->counts == NULL) return false;
    memcpy(op->counts, op->request.counts, world * sizeof *op->counts);
    op->request.counts = op->counts;
    if (op->request.receive_counts == NULL) return true;
    memcpy(op->counts + world, op->request.receive_counts, world * sizeof *op->counts);
    op->request.receive_counts = op->counts + world;
    return true;
}

/* Votes alone end a barrier once all survivors have called it. One that is for all ranks or none has
 * to hear of each, so a byte goes round. */
static void send_a_byte(cc__op *op) {
    op->request.kind = CC_ALL_REDUCE;
    op->request.dtype = CC_UINT8;
    op->request.op = CC_BOR;
    op->request.count = 1;
    op->request.in = op->request.out = &op->byte;
    op->request.flags |= CC_PRESERVE;
}

cc__op *cc__op_new(const cc_request *request, cc__pack *pack, uint32_t group, uint64_t sequence) {
    cc__op *op = calloc(1, sizeof *op);
    if (op == NULL) return NULL;
    op->request = *request;
    if (!keep_counts(op)) {
        free(op);
        return NULL;
    }
    if (pack) {
        op->pack = *pack;
        *pack = (cc__pack){0};
    }
    bool all_are_heard = request->kind == CC_BARRIER && (request->flags & CC_WHOLE);
    if (all_are_heard) send_a_byte(op);
    op->signature = cc__request_signature(&op->request);
    if (all_are_heard) op->signature.flags |= CC__BYTE_BARRIER;
    op->group = group;
    op->sequence = sequence;
    op->deadline_ns = CC__NEVER;
    op->references = 2;
    op->element_bytes = (uint32_t)cc_dtype_bytes(op->request.dtype);
    op->bytes = cc__request_total(&op->request, false) * op->element_bytes;
    op->info = (cc_info){.status = CC_PENDING, .sequence = sequence, .attempts = 1};
    return op;
}

void cc__op_unref(cc__op *op) {
    if (--op->references > 0) return;
    free(op->notify_fds);
    free(op->counts);
    free(op);
}

static cc_status allocate(cc__op *op, uint32_t size) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (cc__is_receive(move))
            total += (move->bytes + cc__op_step(op, move) - 1) / cc__op_step(op, move);
    }
    op->states = calloc(op->plan.n_moves + 1u, sizeof *op->states);
    op->segments = calloc(total + 1, 1);
    op->clear = calloc(size, sizeof *op->clear);
    op->traffic = calloc(size, sizeof *op->traffic);
    op->stage = op->plan.stage_bytes ? cc__pool_take(op->plan.stage_bytes) : NULL;
    if (!op->states || !op->segments || !op->clear || !op->traffic ||
        (op->plan.stage_bytes && !op->stage))
        return CC_NO_MEMORY;
    total = 0;
    for (uint32_t i = 0; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (move->kind == CC__SEND) op->traffic[move->peer] |= CC__TRAFFIC_TO;
        if (!cc__is_receive(move)) continue;
        op->traffic[move->peer] |= CC__TRAFFIC_FROM;
        cc__move_state *state = &op->states[i];
        state->segments = op->segments + total;
        state->n_segments = (move->bytes + cc__op_step(op, move) - 1) / cc__op_step(op, move);
        total += state->n_segments;
    }
    return CC_OK;
}

/* Frees what one attempt needs. */
static void free_parts(cc__op *op) {
    for (uint32_t i = 0; op->states && i < op->plan.n_moves; i++) free(op->states[i].again);
    cc__plan_free(&op->plan);
    cc__saved_close(&op->saved);
    free(op->states);
    free(op->segments);
    free(op->clear);
    free(op->traffic);
    cc__pool_give(op->stage);
    op->states = NULL;
    op->segments = NULL;
    op->clear = NULL;
    op->traffic = NULL;
    op->stage = NULL;
}

/* Notes the ranks without a member; the blocks that they would fill are zeros. */
static void note_missing(cc__op *op, uint32_t size, uint32_t own_rank, const uint32_t *ranks,
                         uint32_t world) {
    unsigned traits = cc__kind_traits(op->request.kind);
    bool has_rows = traits & CC__OUT_BLOCKS;
    if ((traits & CC__OUT_AT_ROOT) && own_rank != op->request.root) has_rows = false;
    uint64_t offset = 0;
    for (uint32_t rank = 0, i = 0; rank < world; rank++) {
        uint64_t row = 0;
        if (has_rows) row = cc__request_block(&op->request, rank, true) * op->element_bytes;
        if (i < size && ranks[i] == rank) {
            i++;
        } else {
            op->info.missing[rank / 8] |= (uint8_t)(1u << rank % 8);
            if (row > 0) memset((uint8_t *)op->request.out + offset, 0, row);
        }
        offset += row;
    }
}

static cc_status build_plan(cc__op *op, uint32_t size, uint32_t me, const uint32_t *ranks) {
    const cc_request *request = &op->request;
    unsigned traits = cc__kind_traits(request->kind);
    cc__plan_input input = {
        .kind = request->kind,
        .algorithm = (cc_algorithm)op->signature.algorithm,
        .size = size,
        .me = me,
        .count = request->count,
        .element_bytes = op->element_bytes,
        .uneven = request->counts != NULL,
    };
    while ((traits & CC__HAS_ROOT) && ranks[input.root] != request->root) input.root++;
    cc__block *blocks = NULL;
    if (traits & CC__BLOCKS) {
        blocks = calloc(2u * size, sizeof *blocks);
        if (blocks == NULL) return CC_NO_MEMORY;
        cc__request_blocks(request, size, ranks, false, blocks);
        cc__request_blocks(request, size, ranks, true, blocks + size);
        input.blocks = blocks;
        input.out_blocks = blocks + size;
    }
    cc_status status = cc__plan_build(&input, &op->plan);
    free(blocks);
    return status;
}

/* In place, the output's bytes are an input: they are kept until the outcome is decided. The kinds
 * that gather leave the input in the output as it is. */
static cc_status keep_input(cc__op *op, uint32_t own_rank) {
    const cc_request *request = &op->request;
    uint64_t bytes = cc__request_out_bytes(request, own_rank);
    bool reduces = cc__kind_traits(request->kind) & CC__HAS_OP;
    bool over_input = op->pack.over_input || cc__request_overlaps(request, own_rank);
    if (!reduces || !over_input || !(request->flags & CC_PRESERVE) || bytes == 0) return CC_OK;
    return cc__saved_open(&op->saved, request->out, bytes, op->segment_bytes);
}

cc_status cc__op_start(cc__op *op, uint32_t size, uint32_t me, const uint32_t *ranks,
                       uint32_t world, uint32_t segment_bytes) {
    op->contributors = size;
    op->segment_bytes = segment_bytes;
    cc_status status = build_plan(op, size, me, ranks);
    if (status == CC_OK) status = allocate(op, size);
    if (status == CC_OK) status = keep_input(op, ranks[me]);
    if (status != CC_OK) {
        free_parts(op);
        return status;
    }
    if (size != world) note_missing(op, size, ranks[me], ranks, world);
    op->carrier = op->plan.eager ? CC__EAGER : CC__DATA;
    op->started = true;
    return CC_OK;
}

cc_status cc__op_start_message(cc__op *op, uint32_t segment_bytes) {
    bool sends = op->request.kind == CC_SEND;
    op->segment_bytes = segment_bytes;
    op->carrier = CC__PIECE;
    cc__plan_add(&op->plan, (cc__move){.kind = sends ? CC__SEND : CC__PLACE,
                                       .after = -1,
                                       .bytes = op->request.count * op->element_bytes,
                                       .src = {CC__IN, 0},
                                       .dst = {CC__OUT, 0}});
    if (op->plan.n_moves != 1 || allocate(op, 1) != CC_OK) {
        free_parts(op);
        return CC_NO_MEMORY;
    }
    op->clear[0] = op->started = op->more = true;
    return CC_OK;
}

/* ---- lists -------------------------------------------------------------------------------- */

void cc__op_enlist(cc__op **list, cc__op *op) {
    op->next_active = *list;
    op->active_link = list;
    if (*list) (*list)->active_link = &op->next_active;
    *list = op;
}

void cc__op_append(cc__op **list, cc__op *op) {
    while (*list) list = &(*list)->next_active;
    cc__op_enlist(list, op);
}

void cc__op_delist(cc__op *op) {
    if (op->active_link == NULL) return;
    *op->active_link = op->next_active;
    if (op->next_active) op->next_active->active_link = op->active_link;
    op->active_link = NULL;
}

bool cc__op_announces_to(const cc__op *op, uint32_t member) {
    if (op->request.receive_counts) return true;
    uint8_t traffic = op->traffic[member];
    return op->plan.eager ? traffic == CC__TRAFFIC_FROM : traffic != 0;
}

uint64_t cc__op_expects_from(const cc__op *op, uint32_t rank) {
    return op->request.receive_counts ? op->request.receive_counts[rank] * op->element_bytes : 0;
}

uint64_t cc__op_sends_to(const cc__op *op, uint32_t rank) {
    return op->request.receive_counts ? op->request.counts[rank] * op->element_bytes : 0;
}

/* ---- the end ------------------------------------------------------------------------------ */

void cc__op_abandon(cc__op *op, cc__links *links, bool undo) {
    if (!op->started) return;
    cc__links_release(links, op);
    if (!undo) return;
    cc__saved_restore(&op->saved);
    cc__pack_restore(&op->pack);
}

void cc__op_rewind(cc__op *op, cc__links *links) {
    cc__op_abandon(op, links, true);
    if (op->started) {
        op->info.attempts++;
        op->info.lost_ns += cc__now(&links->clock) - op->begun_ns;
        cc__op_trace(op, links, CC_TRACE_AGAIN, op->info.attempts, NULL);
    }
    free_parts(op);
    cc__pack_rewind(&op->pack);
    memset(op->info.missing, 0, sizeof op->info.missing);
    op->signature.algorithm = (uint8_t)op->request.algorithm;
    op->started = op->done = op->moved = op->more = false;
    op->verdict = CC_OK;
    op->first_open = 0;
}

/* With little data all happens right behind a time that was read anyway: of a frame, or of the post.
 * With more the clock is read, which costs nothing beside it. */
static int64_t time_of(const cc__op *op, cc__links *links) {
    return op->bytes <= CC_EAGER_BYTES ? links->now_ns : cc__links_now(links);
}

void cc__op_trace(const cc__op *op, cc__links *links, cc_trace_kind kind, uint32_t code,
                  const cc_peer_id *peer) {
    if (links->trace == NULL) return;
    cc_trace_event event = {
        .time_ns = time_of(op, links),
        .epoch = op->epoch,
        .sequence = op->sequence,
        .value = op->bytes,
        .more = (uint64_t)op->posted_ns,
        .group = op->group,
        .kind = (uint8_t)kind,
        .lane = (uint8_t)op->request.lane,
        .what = (uint8_t)op->request.kind,
        .code = code < UINT8_MAX ? (uint8_t)code : UINT8_MAX,
    };
    if (peer) memcpy(event.peer, peer->bytes, sizeof event.peer);
    cc__trace_add(links->trace, &event);
}

void cc__op_finish(cc__op *op, cc_status status, const char *message) {
    op->info.status = status;
    op->info.epoch = op->epoch;
    op->info.contributors = status == CC_OK ? op->contributors : 0;
    op->info.algorithm = (cc_algorithm)op->signature.algorithm;
    strncpy(op->info.message, message, sizeof op->info.message - 1);
    free_parts(op);
    cc__pack_close(&op->pack);
    atomic_store_explicit(&op->complete, 1, memory_order_release);
    for (uint32_t i = 0; i < op->n_notify; i++) {
        uint64_t one = 1;
        ssize_t written = write(op->notify_fds[i], &one, sizeof one);
        (void)written; /* a full pipe is readable, which is all the reader needs */
    }
    op->n_notify = 0;
    cc__op_unref(op);
}
