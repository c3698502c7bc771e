/* How a plan world is built: the plans of all members, where their blocks lie, and the checks of
 * messages and reads that need no execution. */
#ifndef CC_TESTS_PLAN_WORLD_BUILD_H
#define CC_TESTS_PLAN_WORLD_BUILD_H

#include "tests/c/plan_world.h"

/* ---- geometry ------------------------------------------------------------------------------- */

/* Fills in where a member's blocks lie, and returns the element at which its own begins. */
static uint64_t place_blocks(const world *w, member *m, uint32_t me) {
    uint64_t in = 0, out = 0, own = 0;
    for (uint32_t b = 0; b < w->input.size; b++) {
        uint64_t given = length_of(w, me, b), received = length_of(w, b, me);
        in += w->gaps[b];
        out += w->gaps[b];
        own = b == me ? in : own;
        m->in_blocks[b] = (cc__block){in * w->input.element_bytes, given * w->input.element_bytes};
        m->out_blocks[b] =
            (cc__block){out * w->input.element_bytes, received * w->input.element_bytes};
        in += given;
        out += received;
    }
    return has_blocks(w->input.kind) ? own : 0;
}

static uint64_t whole(const world *w, const cc__block *blocks) {
    const cc__block *last = &blocks[w->input.size - 1];
    return (last->offset + last->bytes) / w->input.element_bytes;
}

static uint64_t in_elements(const world *w, const member *m, uint32_t me) {
    switch (w->input.kind) {
    case CC_ALL_GATHER:
    case CC_GATHER: return length_of(w, 0, me);
    case CC_SCATTER: return me == w->input.root ? whole(w, m->in_blocks) : 0;
    case CC_REDUCE_SCATTER:
    case CC_ALL_TO_ALL: return whole(w, m->in_blocks);
    case CC_BROADCAST: return me == w->input.root ? w->input.count : 0;
    default: return w->input.count;
    }
}

static uint64_t out_elements(const world *w, const member *m, uint32_t me) {
    switch (w->input.kind) {
    case CC_ALL_GATHER: return whole(w, m->in_blocks);
    case CC_GATHER: return me == w->input.root ? whole(w, m->in_blocks) : 0;
    case CC_SCATTER:
    case CC_REDUCE_SCATTER: return length_of(w, 0, me);
    case CC_ALL_TO_ALL: return whole(w, m->out_blocks);
    case CC_REDUCE: return me == w->input.root ? w->input.count : 0;
    default: return w->input.count;
    }
}

/* ---- building a world, with the checks that need no execution -------------------------------- */

static void match_messages(world *w) {
    uint32_t sends = 0, receipts = 0, longest = 0, most = 0;
    for (uint32_t a = 0; a < w->input.size; a++) {
        uint32_t next[MEMBERS] = {0}, heard[MEMBERS] = {0};
        for (uint32_t i = 0; i < w->members[a].plan.n_moves; i++) {
            const cc__move *move = &w->members[a].plan.moves[i];
            CHECK(move->bytes > 0 && move->after < (int32_t)i);
            CHECK(move->after < 0 || w->members[a].plan.moves[move->after].bytes == move->bytes);
            if (receives(move)) {
                CHECK_EQ(move->slot, heard[move->peer]++);
                receipts++;
            }
            if (move->kind != CC__SEND) {
                continue;
            }
            CHECK(move->peer < w->input.size && move->peer != a);
            CHECK_EQ(move->slot, next[move->peer]++);
            most = next[move->peer] > most ? next[move->peer] : most;
            longest = move->bytes > longest ? (uint32_t)move->bytes : longest;
            sends++;
            const cc__plan *other = &w->members[move->peer].plan;
            uint32_t matches = 0;
            for (uint32_t k = 0; k < other->n_moves; k++) {
                const cc__move *candidate = &other->moves[k];
                if (receives(candidate) && candidate->peer == a && candidate->slot == move->slot) {
                    CHECK_EQ(candidate->bytes, move->bytes);
                    w->members[a].moves[i].match = k;
                    matches++;
                }
            }
            CHECK_EQ(matches, 1);
        }
    }
    CHECK_EQ(sends, receipts);
    for (uint32_t a = 0; a < w->input.size; a++) {
        CHECK_EQ(w->members[a].plan.eager, w->members[0].plan.eager);
    }
    CHECK(!w->members[0].plan.eager || (most <= 1 && longest <= CC_EAGER_BYTES));
    if (!has_blocks(w->input.kind) && w->input.algorithm != CC_RING &&
        w->input.algorithm != CC_HALVING_DOUBLING) {
        CHECK(w->members[0].plan.eager || most > 1 || longest > CC_EAGER_BYTES);
    }
}

/* The value of one input element. */
static uint64_t input_of(uint32_t member, uint64_t index) {
    uint64_t mixed = (member + 1) * UINT64_C(0xd1342543de82ef95) + index * 0x61c88647;
    return (mixed ^ mixed >> 31) & mask;
}

static void expect_reads(world *w, member *m, cc__place place, uint64_t length) {
    for (uint64_t i = 0; place.area == CC__IN && i < length; i++) {
        CHECK(place.offset / w->input.element_bytes + i < m->elements[CC__IN]);
        m->readers[place.offset / w->input.element_bytes + i]++;
    }
}

/* The memory of one member: IN, OUT (in place, the smaller one lies in the larger) and STAGE. */
static void lay_out(world *w, member *m, uint32_t me) {
    uint64_t own = place_blocks(w, m, me);
    m->elements[CC__IN] = in_elements(w, m, me);
    m->elements[CC__OUT] = out_elements(w, m, me);
    m->elements[CC__STAGE] = m->plan.stage_bytes / w->input.element_bytes;
    for (int area = 0; area < 3; area++) {
        m->memory[area] = allocate(m->elements[area], sizeof(uint64_t));
        m->area[area] = m->memory[area];
    }
    int aliased = w->in_place && m->elements[CC__IN] > 0 && m->elements[CC__OUT] > 0;
    if (aliased && m->elements[CC__OUT] >= m->elements[CC__IN]) {
        m->area[CC__IN] = m->area[CC__OUT] + own;
        m->shift = -(int64_t)own;
    } else if (aliased) {
        m->area[CC__OUT] = m->area[CC__IN] + own;
        m->shift = (int64_t)own;
    } else {
        m->shift = INT64_MIN / 2;
    }
    for (int area = 2; area >= 0; area--) {
        for (uint64_t i = 0; i < m->elements[area]; i++) {
            m->area[area][i] = area == CC__IN ? input_of(me, i) : POISON;
        }
    }
    m->before = allocate(m->elements[CC__OUT], sizeof *m->before);
    memcpy(m->before, m->area[CC__OUT], m->elements[CC__OUT] * sizeof *m->before);
}

static void prepare(world *w) {
    uint32_t all = 0;
    for (uint32_t a = 0; a < w->input.size; a++) {
        member *m = &w->members[a];
        w->input.me = a;
        place_blocks(w, m, a);
        w->input.blocks = m->in_blocks;
        w->input.out_blocks = m->out_blocks;
        CHECK_EQ(cc__plan_build(&w->input, &m->plan), CC_OK);
        CHECK_EQ(m->plan.algorithm, w->input.algorithm);
        lay_out(w, m, a);
        m->readers = allocate(m->elements[CC__IN], sizeof *m->readers);
        m->moves = allocate(m->plan.n_moves, sizeof *m->moves);
        for (uint32_t i = 0; i < m->plan.n_moves; i++) {
            const cc__move *move = &m->plan.moves[i];
            uint64_t length = move->bytes / w->input.element_bytes;
            m->moves[i].segments = (uint32_t)((length + w->segment - 1) / w->segment);
            m->moves[i].is_done = allocate(m->moves[i].segments, 1);
            m->moves[i].payload = move->kind == CC__SEND ? allocate(length, 8) : NULL;
            all += m->moves[i].segments;
            if (move->kind != CC__PLACE) {
                expect_reads(w, m, move->src, length);
            }
            if (move->kind == CC__LOCAL) {
                expect_reads(w, m, move->src2, length);
            }
        }
    }
    match_messages(w);
    w->items = allocate(2 * (size_t)all, sizeof *w->items);
    for (uint32_t a = 0; a < w->input.size; a++) {
        for (uint32_t i = 0; i < w->members[a].plan.n_moves; i++) {
            for (uint32_t s = 0; s < w->members[a].moves[i].segments; s++) {
                if (!receives(&w->members[a].plan.moves[i])) {
                    add_item(w, (item){WORK, a, i, s});
                }
            }
        }
    }
}

static void discard(world *w) {
    for (uint32_t a = 0; a < w->input.size; a++) {
        member *m = &w->members[a];
        for (uint32_t i = 0; i < m->plan.n_moves; i++) {
            free(m->moves[i].is_done);
            free(m->moves[i].payload);
        }
        for (int area = 0; area < 3; area++) {
            free(m->memory[area]);
        }
        free(m->before);
        free(m->readers);
        free(m->moves);
        cc__plan_free(&m->plan);
    }
    free(w->items);
}

#endif
