/* An operation goes on after a link was mended: the receiver of data says which segments it has, and
 * the sender sends the others again.
 *
 * A segment is sent from where it lies, and later moves of the plan may write there: where only the
 * arrival of it could let them (ring), it is still there; where a fence held them back until it was
 * sent, it may be gone. Then the operation has to begin again. */
#include "csrc/op/op.h"

#include <stdlib.h>
#include <string.h>

static uint64_t count_segments(const cc__op *op, const cc__move *move) {
    uint64_t step = cc__op_step(op, move);
    return (move->bytes + step - 1) / step;
}

static uint64_t segment_length(const cc__op *op, const cc__move *move, uint64_t segment) {
    uint64_t step = cc__op_step(op, move), left = move->bytes - segment * step;
    return left < step ? left : step;
}

static bool has(const uint8_t *bitmap, uint64_t segment) {
    return bitmap[segment / 8] >> segment % 8 & 1;
}

void cc__op_mended(cc__op *op, uint32_t member) {
    for (uint32_t i = 0; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        cc__move_state *state = &op->states[i];
        bool is_theirs = move->peer == member && (move->kind == CC__SEND || cc__is_receive(move));
        if (!is_theirs) continue;
        state->n_again = 0;
        for (uint64_t segment = 0; segment < state->n_segments; segment++) {
            uint8_t *what = &state->segments[segment];
            if (*what == CC__LANDING || *what == CC__LANDING_HELD) *what = CC__MISSING;
        }
    }
}

/* ---- the receiver ------------------------------------------------------------------------- */

uint32_t cc__op_next_incomplete(const cc__op *op, uint32_t from, uint32_t move) {
    while (move < op->plan.n_moves &&
           (!cc__is_receive(&op->plan.moves[move]) || op->plan.moves[move].peer != from ||
            op->states[move].done == op->plan.moves[move].bytes))
        move++;
    return move;
}

uint64_t cc__op_bitmap_bytes(const cc__op *op, uint32_t move) {
    return (op->states[move].n_segments + 7) / 8;
}

void cc__op_bitmap(const cc__op *op, uint32_t move, uint8_t *out) {
    const cc__move_state *state = &op->states[move];
    memset(out, 0, cc__op_bitmap_bytes(op, move));
    for (uint64_t i = 0; i < state->n_segments; i++)
        if (state->segments[i] == CC__HELD || state->segments[i] == CC__COMPLETE)
            out[i / 8] |= (uint8_t)(1u << i % 8);
}

/* ---- the sender --------------------------------------------------------------------------- */

/* Whether a move has begun to write any of the bytes [from, from + length). */
static bool wrote(const cc__op *op, uint32_t index, const uint8_t *from, uint64_t length) {
    const cc__move *move = &op->plan.moves[index];
    const cc__move_state *state = &op->states[index];
    if (move->kind == CC__SEND || move->bytes == 0) return false;
    const uint8_t *to = cc__op_at(op, move->dst, 0);
    if (move->kind == CC__COPY && to == cc__op_at(op, move->src, 0)) return false; /* in place */
    if (from + length <= to || to + move->bytes <= from) return false;
    uint64_t first = from > to ? (uint64_t)(from - to) : 0;
    uint64_t end = (uint64_t)(from + length - to);
    if (end > move->bytes) end = move->bytes;
    if (!cc__is_receive(move)) return state->done > first;
    uint64_t step = cc__op_step(op, move);
    for (uint64_t i = first / step; i * step < end; i++)
        if (state->segments[i] == CC__LANDING || state->segments[i] == CC__COMPLETE) return true;
    return false;
}

static bool is_intact(const cc__op *op, uint32_t index, uint64_t segment) {
    const cc__move *move = &op->plan.moves[index];
    const uint8_t *from = cc__op_at(op, move->src, segment * cc__op_step(op, move));
    uint64_t length = segment_length(op, move, segment);
    for (uint32_t later = index + 1; later < op->plan.n_moves; later++)
        if (wrote(op, later, from, length)) return false;
    return true;
}

static int64_t find_send(const cc__op *op, uint32_t to, uint32_t slot) {
    for (uint32_t i = 0; i < op->plan.n_moves; i++) {
        const cc__move *move = &op->plan.moves[i];
        if (move->kind == CC__SEND && move->peer == to && move->slot == slot) return i;
    }
    return -1;
}

/* A send has arrived as far as it was handed out, but for what is to be sent again. */
static void recount(cc__op *op, uint32_t index) {
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    state->done = state->next;
    for (uint64_t segment = 0, left = state->n_again; left > 0; segment++) {
        if (!state->again[segment]) continue;
        state->done -= segment_length(op, move, segment);
        left--;
    }
    if (state->n_again > 0 && index < op->first_open) op->first_open = index;
}

cc_status cc__op_resume(cc__op *op, uint32_t to, uint32_t slot, const uint8_t *bitmap,
                        uint64_t bytes) {
    int64_t found = op->plan.eager ? -1 : find_send(op, to, slot);
    if (found < 0) return CC_PROTOCOL;
    uint32_t index = (uint32_t)found;
    const cc__move *move = &op->plan.moves[index];
    cc__move_state *state = &op->states[index];
    uint64_t segments = count_segments(op, move), step = cc__op_step(op, move);
    if (bytes != (segments + 7) / 8) return CC_PROTOCOL;
    if (state->again == NULL) state->again = malloc(segments);
    if (state->again == NULL) return CC_UNSUPPORTED;
    memset(state->again, 0, segments);
    state->n_again = state->again_at = 0;
    for (uint64_t i = 0; i < segments; i++) {
        bool handed = i * step < state->next;
        if (has(bitmap, i) && !handed) return CC_PROTOCOL;
        if (has(bitmap, i) || !handed) continue;
        if (!is_intact(op, index, i)) return CC_UNSUPPORTED;
        state->again[i] = 1;
        state->n_again++;
    }
    recount(op, index); /* at once: what may overwrite it waits again */
    return CC_OK;
}

bool cc__op_resumed(cc__op *op, uint32_t to) {
    bool any = false;
    for (uint32_t i = 0; i < op->plan.n_moves && !op->plan.eager; i++) {
        const cc__move *move = &op->plan.moves[i];
        const cc__move_state *state = &op->states[i];
        if (move->kind != CC__SEND || move->peer != to) continue;
        recount(op, i);
        any |= state->n_again > 0;
    }
    op->more = true;
    return any;
}
