/* Carries out a plan. Every receive is a set of segments, each of which arrives once; a send hands
 * out segments in order as what they depend on completes. */
#include "csrc/op.h"

#include "csrc/kernels/kernels.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOCAL_STEP_BYTES (256u << 10) /* of one memcpy or kernel call of a local move */
#define PUMP_BYTES (2u << 20)         /* moved by one call of pump, so that others get a turn */

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
    op->signature = cc__request_signature(request);
    op->group = group;
    op->sequence = sequence;
    op->deadline_ns = CC__NEVER;
    op->references = 2;
    op->element_bytes = (uint32_t)cc_dtype_bytes(request->dtype);
    op->info = (cc_info){.status = CC_PENDING, .sequence = sequence, .attempts = 1};
    return op;
}

void cc__op_unref(cc__op *op) {
    if (--op->references > 0) return;
    free(op->notify_fds);
    free(op->counts);
    free(op);
}

static bool is_receive(const cc__move *move) {
    return move->kind == CC__PLACE || move->kind == CC__REDUCE;
}

/* How much of a message travels in one frame. */
static uint64_t step_of(const cc__op *op, const cc__move *move) {
    return op->plan.eager ? move->bytes : op->segment_bytes;
}

static cc_status allocate(cc__op *op, uint32_t size) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (is_receive(move)) total += (move->bytes + step_of(op, move) - 1) / step_of(op, move);
    }
    op->states = calloc(op->plan.n_moves + 1u, sizeof *op->states);
    op->segments = calloc(total + 1, 1);
    op->clear = calloc(size, sizeof *op->clear);
    op->traffic = calloc(size, sizeof *op->traffic);
    op->stage = op->plan.stage_bytes ? malloc(op->plan.stage_bytes) : NULL;
    if (!op->states || !op->segments || !op->clear || !op->traffic ||
        (op->plan.stage_bytes && !op->stage))
        return CC_NO_MEMORY;
    total = 0;
    for (uint32_t i = 0; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (move->kind == CC__SEND) op->traffic[move->peer] |= CC__TRAFFIC_TO;
        if (!is_receive(move)) continue;
        op->traffic[move->peer] |= CC__TRAFFIC_FROM;
        cc__move_state *state = &op->states[i];
        state->segments = op->segments + total;
        state->n_segments = (move->bytes + step_of(op, move) - 1) / step_of(op, move);
        total += state->n_segments;
    }
    return CC_OK;
}

/* Frees what one attempt needs. */
static void free_parts(cc__op *op) {
    cc__plan_free(&op->plan);
    cc__saved_close(&op->saved);
    free(op->states);
    free(op->segments);
    free(op->clear);
    free(op->traffic);
    free(op->stage);
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
    op->started = true;
    return CC_OK;
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

/* ---- segments ----------------------------------------------------------------------------- */

static uint8_t *at(const cc__op *op, cc__place place, uint64_t offset) {
    union {
        const void *from;
        uint8_t *to;
    } in = {op->request.in}; /* only ever read through */
    uint8_t *base = place.area == CC__IN    ? in.to
                    : place.area == CC__OUT ? (uint8_t *)op->request.out
                                            : op->stage;
    return base + place.offset + offset;
}

static bool complete(const cc__op *op, uint32_t index) {
    return op->states[index].done == op->plan.moves[index].bytes;
}

static void skip_complete(cc__op *op) {
    while (op->first_open < op->plan.n_moves && complete(op, op->first_open)) op->first_open++;
}

/* Whether the bytes of a move below `end` may be carried out. */
static bool allowed(const cc__op *op, uint32_t index, uint64_t end) {
    const cc__move *move = &op->plan.moves[index];
    if ((move->flags & CC__MOVE_FENCE) && op->first_open < index) return false;
    return move->after < 0 || op->states[move->after].done >= end;
}

static void before_write(cc__op *op, const cc__move *move, uint64_t offset, uint64_t length) {
    if (move->dst.area == CC__OUT) cc__saved_keep(&op->saved, move->dst.offset + offset, length);
}

static void finish_bytes(cc__op *op, const cc__move *move, uint64_t offset, uint64_t length) {
    if (!(move->flags & CC__MOVE_FINISH) || op->request.op != CC_AVG || op->contributors == 1)
        return;
    cc__divide(at(op, move->dst, offset), length / op->element_bytes, op->request.dtype,
               op->contributors);
}

static void combine(cc__op *op, const cc__move *move, uint64_t offset, uint64_t length,
                    const void *left, const void *right) {
    before_write(op, move, offset, length);
    cc__reduce(at(op, move->dst, offset), left, right, length / op->element_bytes,
               op->request.dtype, op->request.op);
    finish_bytes(op, move, offset, length);
}

static void copy(cc__op *op, const cc__move *move, uint64_t offset, uint64_t length,
                 const void *from) {
    uint8_t *to = at(op, move->dst, offset);
    if (to == from) return;
    before_write(op, move, offset, length);
    memcpy(to, from, length);
}

/* Uses the payload of a segment that may be used now. */
static void use(cc__op *op, uint32_t index, uint64_t segment, const void *data) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t step = step_of(op, move), offset = segment * step;
    uint64_t length = move->bytes - offset < step ? move->bytes - offset : step;
    if (move->kind == CC__PLACE) {
        copy(op, move, offset, length, data);
    } else {
        const void *local = at(op, move->src, offset);
        bool first = move->flags & CC__MOVE_INCOMING_FIRST;
        combine(op, move, offset, length, first ? data : local, first ? local : data);
    }
    state->segments[segment] = CC__COMPLETE;
    while (state->done < move->bytes && state->segments[state->done / step] == CC__COMPLETE)
        state->done = move->bytes - state->done < step ? move->bytes : state->done + step;
    skip_complete(op);
}

static int64_t find_receive(const cc__op *op, uint32_t from, uint32_t slot) {
    for (uint32_t i = op->first_open; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (is_receive(move) && move->peer == from && move->slot == slot) return i;
    }
    return -1;
}

cc_status cc__op_expect(cc__op *op, const cc__frame *frame, uint32_t from, void **place) {
    int64_t index = find_receive(op, from, frame->slot);
    if (index < 0) return CC_PROTOCOL;
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t step = step_of(op, move);
    if (frame->offset >= move->bytes || frame->offset % step != 0) return CC_PROTOCOL;
    uint64_t left = move->bytes - frame->offset;
    if (frame->length != (left < step ? left : step)) return CC_PROTOCOL;
    uint64_t segment = frame->offset / step;
    if (state->segments[segment] != CC__MISSING) return CC_PROTOCOL;
    if (!allowed(op, (uint32_t)index, frame->offset + frame->length)) {
        state->segments[segment] = CC__LANDING_HELD;
        *place = at(op, move->hold, frame->offset);
        return CC_OK;
    }
    state->segments[segment] = CC__LANDING;
    *place = NULL;
    if (move->kind == CC__PLACE) {
        before_write(op, move, frame->offset, frame->length);
        *place = at(op, move->dst, frame->offset);
    }
    return CC_OK;
}

void cc__op_take(cc__op *op, const cc__frame *frame, uint32_t from, const void *data) {
    int64_t index = find_receive(op, from, frame->slot);
    if (index < 0) return;
    uint64_t segment = frame->offset / step_of(op, &op->plan.moves[index]);
    uint8_t *state = &op->states[index].segments[segment];
    if (*state == CC__LANDING_HELD)
        *state = CC__HELD;
    else if (*state == CC__LANDING)
        use(op, (uint32_t)index, segment, data);
}

void cc__op_sent(cc__op *op, uint32_t move, uint32_t bytes) {
    op->states[move].done += bytes;
    skip_complete(op);
}

/* ---- pump --------------------------------------------------------------------------------- */

static void pump_send(cc__op *op, uint32_t index, cc__links *links, cc__link *const *members,
                      uint64_t *budget) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    while (state->next < move->bytes && op->clear[move->peer]) {
        uint64_t left = move->bytes - state->next, step = step_of(op, move);
        uint64_t length = left < step ? left : step;
        if (!allowed(op, index, state->next + length)) return;
        if (*budget < length) {
            op->more = true;
            return;
        }
        cc__frame frame = {
            .type = op->plan.eager ? CC__EAGER : CC__DATA,
            .lane = (uint8_t)op->request.lane,
            .slot = (uint16_t)move->slot,
            .group = op->group,
            .length = (uint32_t)length,
            .epoch = op->epoch,
            .sequence = op->sequence,
            .offset = state->next,
            .signature = op->signature,
        };
        const void *payload = at(op, move->src, state->next);
        cc__link *link = members[move->peer];
        cc_status status = CC_OK;
        if (op->plan.eager)
            cc__links_send(links, link, &frame, payload);
        else
            status = cc__links_send_segment(links, link, &frame, payload, op, index);
        if (status == CC_BUSY) return;
        *budget -= length;
        state->next += length;
        if (status == CC_OK) cc__op_sent(op, index, (uint32_t)length);
    }
}

static void pump_held(cc__op *op, uint32_t index) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t step = step_of(op, move);
    for (uint64_t i = state->done / step; i < state->n_segments; i++) {
        uint64_t end = (i + 1) * step < move->bytes ? (i + 1) * step : move->bytes;
        if (!allowed(op, index, end)) return;
        if (state->segments[i] == CC__HELD) use(op, index, i, at(op, move->hold, i * step));
    }
}

static void pump_local(cc__op *op, uint32_t index, uint64_t *budget) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    while (state->done < move->bytes) {
        uint64_t left = move->bytes - state->done;
        uint64_t length = left < LOCAL_STEP_BYTES ? left : LOCAL_STEP_BYTES;
        if (!allowed(op, index, state->done + length)) return;
        if (*budget < length) {
            op->more = true;
            return;
        }
        *budget -= length;
        const void *left_operand = at(op, move->src, state->done);
        if (move->kind == CC__COPY)
            copy(op, move, state->done, length, left_operand);
        else
            combine(op, move, state->done, length, left_operand, at(op, move->src2, state->done));
        state->done += length;
        skip_complete(op);
    }
}

void cc__op_pump(cc__op *op, cc__links *links, cc__link *const *members) {
    uint64_t budget = PUMP_BYTES;
    op->more = false;
    skip_complete(op);
    for (uint32_t i = op->first_open; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (complete(op, i)) continue;
        if (move->kind == CC__SEND)
            pump_send(op, i, links, members, &budget);
        else if (is_receive(move))
            pump_held(op, i);
        else
            pump_local(op, i, &budget);
    }
    if (op->first_open < op->plan.n_moves) return;
    op->done = cc__pack_deliver(&op->pack, &budget);
    op->more = !op->done;
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
    }
    free_parts(op);
    cc__pack_rewind(&op->pack);
    memset(op->info.missing, 0, sizeof op->info.missing);
    op->signature.algorithm = (uint8_t)op->request.algorithm;
    op->started = op->done = op->more = false;
    op->verdict = CC_OK;
    op->first_open = 0;
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
