#include "csrc/group/group.h"

#include <stdio.h>
#include <string.h>

#define TEXT_MAX 4 /* members that a text names */

static int64_t beat_ns(const cc__group *group) {
    return group->links->timeouts.beat_ms * CC__MS;
}

static int64_t stalled_ns(const cc__group *group) {
    return group->links->timeouts.stalled_ms * CC__MS;
}

static int64_t suspect_ns(const cc__group *group) {
    return group->links->timeouts.suspect_ms * CC__MS;
}

/* This peer's time but for what it slept through: nobody is late because this one was stopped. */
static int64_t awake(const cc__group *group, int64_t now) {
    return now - group->links->detector.slept_ns;
}

/* The operation that a lane waits for, if this peer has posted it in this epoch. */
static const cc__op *first_open(const cc__group *group, const cc__lane *lane) {
    const cc__op *op = cc__lane_op(lane, lane->tally.committed + 1);
    bool runs = group->state == CC__GROUP_ACTIVE && op && op->epoch == group->epoch;
    return runs ? op : NULL;
}

/* ---- looking and asking ------------------------------------------------------------------- */

static uint64_t all_moved(const cc__group *group, const cc__lane *lane, const cc__op *op) {
    uint64_t moved = cc__op_progress(op);
    for (uint32_t i = 0; i < group->size; i++) moved += lane->tally.voted[i];
    return moved;
}

static void look(cc__group *group, cc__lane *lane, int64_t now) {
    cc__patience *patience = &lane->patience;
    const cc__op *op = first_open(group, lane);
    if (op == NULL) return;
    uint64_t moved = all_moved(group, lane, op);
    if (patience->sequence != op->sequence)
        *patience = (cc__patience){.sequence = op->sequence, .moved = moved - 1};
    if (patience->moved != moved) {
        patience->moved = moved;
        patience->moved_ns = now;
        patience->tell_ns = now + stalled_ns(group);
        return;
    }
    if (!patience->asked && now - patience->moved_ns >= suspect_ns(group)) {
        patience->asked = true;
        patience->asked_ns = now;
        for (uint32_t i = 0; i < group->size; i++) /* who is done with it may ask as well */
            if (i != group->me) cc__lane_send_ready(group, op, i);
    }
    if (now < patience->tell_ns) return;
    patience->tell_ns = now + stalled_ns(group);
    patience->due = group->stragglers_due = true;
}

int64_t cc__stragglers_tick(cc__group *group, int64_t now) {
    if (group->state != CC__GROUP_ACTIVE) return CC__NEVER;
    if (now < group->look_ns) return group->look_ns;
    group->look_ns = now + beat_ns(group);
    for (uint32_t i = 0; i < CC_LANES_MAX; i++)
        if (group->lanes[i] && group->lanes[i]->n_open > 0)
            look(group, group->lanes[i], awake(group, now));
    return group->look_ns;
}

bool cc__stragglers_asked(const cc__lane *lane, const cc__op *op) {
    return lane->patience.asked && lane->patience.sequence == op->sequence;
}

/* ---- what is known ------------------------------------------------------------------------ */

static bool has_voted(const cc__group *group, const cc__lane *lane, uint32_t member,
                      uint64_t sequence) {
    return member == group->me || lane->tally.voted[member] >= sequence;
}

static bool has_posted(const cc__lane *lane, uint32_t member, uint64_t sequence) {
    const cc__notice *notice = cc__lane_notice(lane, member, sequence);
    return notice && (notice->ready || notice->voted);
}

/* Whether a member would have said by now that it has posted what it was asked about: something
 * came of it a beat after the question. Who is silent may have posted it, or not. */
static bool has_answered(const cc__group *group, const cc__lane *lane, uint32_t member) {
    int64_t heard_ns = group->member_links[member]->watch.heard_ns;
    return heard_ns - lane->patience.asked_ns >= beat_ns(group);
}

uint32_t cc__stragglers(const cc__group *group, const cc__lane *lane, cc_straggler *out,
                        uint32_t room) {
    const cc__op *op = first_open(group, lane);
    const cc__patience *patience = &lane->patience;
    if (op == NULL || !cc__stragglers_asked(lane, op)) return 0;
    int64_t now = awake(group, cc__now(&group->links->clock));
    uint32_t n = 0, unknown = 0;
    for (uint32_t i = 0; i < group->size; i++) {
        if (has_voted(group, lane, i, op->sequence) || has_posted(lane, i, op->sequence)) continue;
        if (!has_answered(group, lane, i)) {
            unknown++;
            continue;
        }
        if (n < room) out[n] = (cc_straggler){group->ranks[i], CC_LATE};
        n++;
    }
    if (n > 0 || unknown > 0 || now - patience->moved_ns < stalled_ns(group)) return n;
    for (uint32_t i = 0; i < group->size; i++) {
        if (has_voted(group, lane, i, op->sequence)) continue;
        if (!op->done && !cc__op_waits_for(op, i)) continue;
        if (n < room) out[n] = (cc_straggler){group->ranks[i], CC_STALLED};
        n++;
    }
    return n;
}

void cc__stragglers_text(const cc__group *group, const cc__lane *lane, const cc__op *op, char *out,
                         size_t size) {
    cc_straggler found[TEXT_MAX];
    char ranks[80] = "", what[40] = "it";
    uint32_t n = cc__stragglers(group, lane, found, TEXT_MAX), named = n < TEXT_MAX ? n : TEXT_MAX;
    out[0] = 0;
    if (n == 0) return;
    for (uint32_t i = 0; i < named; i++) {
        size_t at = strlen(ranks);
        const char *comma = i == 0 ? "" : i + 1 == n ? " and " : ", ";
        snprintf(ranks + at, sizeof ranks - at, "%s%u", comma, found[i].rank);
    }
    size_t at = strlen(ranks);
    if (n > named) snprintf(ranks + at, sizeof ranks - at, " and %u more", n - named);
    if (lane->patience.sequence != op->sequence)
        snprintf(what, sizeof what, "operation %llu", (unsigned long long)lane->patience.sequence);
    snprintf(out, size,
             found[0].delay == CC_LATE ? "; rank%s %s had not called %s"
                                       : "; rank%s %s had called %s and did not move",
             n > 1 ? "s" : "", ranks, what);
}

bool cc__stragglers_take(cc__group *group, cc_event *out) {
    for (uint32_t i = 0; group->stragglers_due && i < CC_LANES_MAX; i++) {
        cc__lane *lane = group->lanes[i];
        if (lane == NULL || !lane->patience.due) continue;
        lane->patience.due = false;
        out->n_stragglers = cc__stragglers(group, lane, out->stragglers, CC_STRAGGLERS_MAX);
        if (out->n_stragglers == 0) continue; /* it has gone on meanwhile */
        const cc__op *op = first_open(group, lane);
        int64_t now = awake(group, cc__now(&group->links->clock));
        out->kind = CC_EVENT_WAITS;
        out->lane = i;
        out->sequence = op->sequence;
        out->waited_ns = now - lane->patience.moved_ns;
        cc__signature_text(&op->signature, out->call, sizeof out->call);
        return true;
    }
    group->stragglers_due = false;
    return false;
}
