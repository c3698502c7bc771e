/* Carries out a plan. Every receive is a set of segments, each of which arrives once; a send hands
 * out segments in order as what they depend on completes. */
#include "csrc/op/op.h"

#include "csrc/kernels/kernels.h"

#include <string.h>

#define LOCAL_STEP_BYTES (256u << 10) /* of one memcpy or kernel call of a local move */
#define PUMP_BYTES (2u << 20)         /* moved by one call of pump, so that others get a turn */

/* ---- segments ----------------------------------------------------------------------------- */

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
    cc__divide(cc__op_at(op, move->dst, offset), length / op->element_bytes, op->request.dtype,
               op->contributors);
}

static void combine(cc__op *op, const cc__move *move, uint64_t offset, uint64_t length,
                    const void *left, const void *right) {
    before_write(op, move, offset, length);
    cc__reduce(cc__op_at(op, move->dst, offset), left, right, length / op->element_bytes,
               op->request.dtype, op->request.op);
    finish_bytes(op, move, offset, length);
}

static void copy(cc__op *op, const cc__move *move, uint64_t offset, uint64_t length,
                 const void *from) {
    uint8_t *to = cc__op_at(op, move->dst, offset);
    if (to == from) return;
    before_write(op, move, offset, length);
    memcpy(to, from, length);
}

/* Uses the payload of a segment that may be used now. */
static void use(cc__op *op, uint32_t index, uint64_t segment, const void *data) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t step = cc__op_step(op, move), offset = segment * step;
    uint64_t length = move->bytes - offset < step ? move->bytes - offset : step;
    if (move->kind == CC__PLACE) {
        copy(op, move, offset, length, data);
    } else {
        const void *local = cc__op_at(op, move->src, offset);
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
        if (cc__is_receive(move) && move->peer == from && move->slot == slot) return i;
    }
    return -1;
}

cc_status cc__op_expect(cc__op *op, const cc__frame *frame, uint32_t from, void **place) {
    int64_t index = find_receive(op, from, frame->slot);
    if (index < 0) return CC_PROTOCOL;
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t step = cc__op_step(op, move);
    if (frame->offset >= move->bytes || frame->offset % step != 0) return CC_PROTOCOL;
    uint64_t left = move->bytes - frame->offset;
    if (frame->length != (left < step ? left : step)) return CC_PROTOCOL;
    uint64_t segment = frame->offset / step;
    if (state->segments[segment] != CC__MISSING) return CC_PROTOCOL;
    if (!allowed(op, (uint32_t)index, frame->offset + frame->length)) {
        state->segments[segment] = CC__LANDING_HELD;
        *place = cc__op_at(op, move->hold, frame->offset);
        return CC_OK;
    }
    state->segments[segment] = CC__LANDING;
    *place = NULL;
    if (move->kind == CC__PLACE) {
        before_write(op, move, frame->offset, frame->length);
        *place = cc__op_at(op, move->dst, frame->offset);
    }
    return CC_OK;
}

void cc__op_take(cc__op *op, const cc__frame *frame, uint32_t from, const void *data) {
    int64_t index = find_receive(op, from, frame->slot);
    if (index < 0) return;
    uint64_t segment = frame->offset / cc__op_step(op, &op->plan.moves[index]);
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

/* ---- what it waits for -------------------------------------------------------------------- */

uint64_t cc__op_progress(const cc__op *op) {
    uint64_t moved = op->done;
    for (uint32_t i = 0; op->states && i < op->plan.n_moves; i++) moved += op->states[i].done;
    return moved;
}

bool cc__op_waits_for(const cc__op *op, uint32_t member) {
    for (uint32_t i = op->first_open; op->states && i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (move->peer != member || complete(op, i)) continue;
        const cc__move_state *state = &op->states[i];
        if (move->kind == CC__SEND && state->next > state->done) return true;
        if (cc__is_receive(move) && allowed(op, i, state->done + 1)) return true;
    }
    return false;
}

/* ---- pump --------------------------------------------------------------------------------- */

/* Where the next frame of a send starts: first what is to be sent once more. */
static uint64_t next_offset(const cc__op *op, const cc__move *move, cc__move_state *state) {
    if (state->n_again == 0) return state->next;
    while (!state->again[state->again_at]) state->again_at++;
    return state->again_at * cc__op_step(op, move);
}

static void handed_out(cc__move_state *state, uint64_t length) {
    if (state->n_again == 0) {
        state->next += length;
        return;
    }
    state->again[state->again_at] = 0;
    state->n_again--;
}

static void pump_send(cc__op *op, uint32_t index, cc__links *links, cc__link *const *members,
                      uint64_t *budget) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    while ((state->n_again > 0 || state->next < move->bytes) && op->clear[move->peer]) {
        uint64_t offset = next_offset(op, move, state);
        uint64_t left = move->bytes - offset, step = cc__op_step(op, move);
        uint64_t length = left < step ? left : step;
        if (!allowed(op, index, offset + length)) return;
        if (*budget < length) {
            op->more = true;
            return;
        }
        cc__frame frame = {
            .type = (uint8_t)op->carrier,
            .lane = (uint8_t)op->request.lane,
            .slot = (uint16_t)move->slot,
            .group = op->group,
            .length = (uint32_t)length,
            .epoch = op->epoch,
            .sequence = op->sequence,
            .offset = offset,
            .signature = op->signature,
        };
        const void *payload = cc__op_at(op, move->src, offset);
        cc__link *link = members[move->peer];
        cc_status status = CC_OK;
        if (op->plan.eager)
            cc__links_send(links, link, &frame, payload);
        else
            status = cc__links_send_segment(links, link, &frame, payload, op, index);
        if (status == CC_BUSY) return;
        cc__op_moved(op, links, link);
        *budget -= length;
        handed_out(state, length);
        if (status == CC_OK) cc__op_sent(op, index, (uint32_t)length);
    }
}

static void pump_held(cc__op *op, uint32_t index) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t step = cc__op_step(op, move);
    for (uint64_t i = state->done / step; i < state->n_segments; i++) {
        uint64_t end = (i + 1) * step < move->bytes ? (i + 1) * step : move->bytes;
        if (!allowed(op, index, end)) return;
        if (state->segments[i] == CC__HELD) use(op, index, i, cc__op_at(op, move->hold, i * step));
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
        const void *left_operand = cc__op_at(op, move->src, state->done);
        if (move->kind == CC__COPY)
            copy(op, move, state->done, length, left_operand);
        else
            combine(op, move, state->done, length, left_operand,
                    cc__op_at(op, move->src2, state->done));
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
        else if (cc__is_receive(move))
            pump_held(op, i);
        else
            pump_local(op, i, &budget);
    }
    if (op->first_open < op->plan.n_moves) return;
    op->done = cc__pack_deliver(&op->pack, &budget);
    op->more = !op->done;
}
