/* Membership as one peer lives it: install an epoch, seal it, report on it. docs/protocol.md
 * sections 4 and 6. */
#include "csrc/group/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

cc__group *cc__group_new(uint32_t id, cc__links *links) {
    cc__group *group = calloc(1, sizeof *group);
    if (group == NULL) return NULL;
    group->id = id;
    group->links = links;
    group->deadline_ns = group->pairs.deadline_ns = CC__NEVER;
    group->dispatch.report_ns = group->dispatch.record_ns = CC__NEVER;
    return group;
}

static void free_members(cc__group *group) {
    cc__dispatch_forget(group);
    free(group->members);
    free(group->ranks);
    free(group->member_links);
    free(group->installed);
    free(group->gone);
    group->members = NULL;
    group->ranks = NULL;
    group->member_links = NULL;
    group->installed = group->gone = NULL;
}

void cc__group_free(cc__group *group) {
    for (uint32_t i = 0; i < CC_LANES_MAX; i++) {
        if (group->lanes[i] == NULL) continue;
        cc__links_release(group->links, group->lanes[i]);
        cc__lane_free(group->lanes[i], group->size);
    }
    free_members(group);
    free(group);
}

int64_t cc__group_member(const cc__group *group, const cc__link *link) {
    for (uint32_t i = 0; i < group->size; i++)
        if (group->member_links[i] == link) return i;
    return -1;
}

void cc__group_seal_mismatch(cc__group *group, cc__lane *lane, uint64_t sequence,
                             const char *detail) {
    if (group->state == CC__GROUP_ACTIVE && lane->done >= sequence) lane->done = sequence - 1;
    cc__group_seal(group, CC_CAUSE_MISMATCH, NULL, 0, detail);
}

bool cc__group_has(const cc__group *group, const cc__link *link) {
    return group->state != CC__GROUP_ENDED && cc__group_member(group, link) >= 0;
}

/* ---- seal and report ---------------------------------------------------------------------- */

static void report_again(cc__group *group) {
    group->report_due = true;
    cc__dispatch_evidence(group);
}

static void add_evidence(cc__group *group, const cc_peer_id *peer, cc_evidence_kind kind) {
    cc_report *report = &group->report;
    for (uint32_t i = 0; i < report->n_evidence; i++) {
        cc_evidence *known = &report->evidence[i];
        if (memcmp(known->peer.bytes, peer->bytes, 16) != 0) continue;
        bool final = known->kind == CC_EVIDENCE_REFUSED || known->kind == CC_EVIDENCE_GOODBYE;
        if (!final && known->kind != kind) {
            known->kind = kind;
            report_again(group);
        }
        return;
    }
    if (report->n_evidence == CC_REPORT_EVIDENCE_MAX) return; /* others report on the rest */
    report->evidence[report->n_evidence++] = (cc_evidence){*peer, kind};
    report_again(group);
}

/* What a lane was doing: so that the coordinator can compare calls that never met. */
static void freeze_lane(const cc__group *group, const cc__lane *lane, cc_lane_report *out) {
    uint64_t posted = lane->posted > lane->done ? lane->posted : lane->done;
    *out = (cc_lane_report){lane->index, lane->tally.committed, lane->done, posted, 0, {0}};
    for (uint64_t sequence = lane->tally.committed + 1; sequence <= posted; sequence++) {
        const cc__op *op = cc__lane_op(lane, sequence);
        if (out->n_calls == CC_REPORT_CALLS_MAX) return;
        bool known = op && op->epoch == group->epoch; /* else it was never started */
        out->calls[out->n_calls++] = known ? cc__signature_hash(&op->signature) : 0;
    }
}

static void freeze(cc__group *group) {
    cc_report *report = &group->report;
    for (uint32_t i = 0; i < CC_LANES_MAX; i++)
        if (group->lanes[i]) freeze_lane(group, group->lanes[i], &report->lanes[report->n_lanes++]);
    const cc__lane *lane = group->lanes[0];
    const cc__op *op = lane ? cc__lane_op(lane, lane->posted) : NULL;
    if (op == NULL || op->request.kind != CC_BOUNDARY || op->epoch != group->epoch) return;
    report->boundary = op->sequence;
    report->wants = op->wishes;
}

static void release_buffers(cc__group *group) {
    while (group->active) {
        cc__op *op = group->active;
        cc__links_release(group->links, op);
        cc__op_delist(op);
    }
    for (uint32_t i = 0; i < CC_LANES_MAX; i++)
        if (group->lanes[i]) cc__links_release(group->links, group->lanes[i]);
}

static void send_abort(cc__group *group, uint32_t member) {
    const cc_report *report = &group->report;
    cc__abort_payload abort = {.cause = report->cause};
    if (report->n_evidence > 0) {
        abort.suspect = report->evidence[0].peer;
        abort.evidence = report->evidence[0].kind;
    }
    uint8_t payload[CC__ABORT_BYTES];
    cc__abort_pack(&abort, payload);
    cc__frame frame = {
        .type = CC__ABORT, .group = group->id, .epoch = group->epoch, .length = CC__ABORT_BYTES};
    cc__links_send(group->links, group->member_links[member], &frame, payload);
}

void cc__group_seal(cc__group *group, cc_cause cause, const cc_peer_id *suspect,
                    cc_evidence_kind evidence, const char *detail) {
    if (group->state == CC__GROUP_SEALED && suspect) add_evidence(group, suspect, evidence);
    if (group->state != CC__GROUP_ACTIVE) return;
    group->state = CC__GROUP_SEALED;
    group->report = (cc_report){.group = group->id, .epoch = group->epoch, .cause = cause};
    snprintf(group->report.detail, sizeof group->report.detail, "%s", detail);
    cc__group_trace(group, CC_TRACE_SEALED, cause, evidence, suspect);
    freeze(group);
    if (suspect) add_evidence(group, suspect, evidence);
    for (uint32_t i = 0; i < group->size; i++)
        if (group->gone[i]) add_evidence(group, &group->members[i].id, CC_EVIDENCE_GOODBYE);
    release_buffers(group);
    for (uint32_t i = 0; i < group->size; i++)
        if (i != group->me) send_abort(group, i);
    group->report_due = true;
    cc__dispatch_sealed(group);
}

/* ---- install ------------------------------------------------------------------------------ */

static bool valid_record(const cc__group *group, const cc_epoch *record) {
    bool found = false;
    if (record->n_members == 0 || record->n_members > CC_MEMBERS_MAX ||
        record->world > CC_MEMBERS_MAX || record->n_lanes > CC_LANES_MAX)
        return false;
    for (uint32_t i = 0; i < record->n_members; i++) {
        const cc_member *member = &record->members[i];
        if (member->rank >= record->world) return false;
        if (i > 0 && member->rank <= record->members[i - 1].rank) return false;
        if (memchr(member->address, 0, sizeof member->address) == NULL) return false;
        if (memcmp(member->id.bytes, group->links->self.bytes, 16) == 0) found = true;
    }
    uint32_t lanes = 0;
    for (uint32_t i = 0; i < record->n_lanes; i++) {
        const cc_outcome *outcome = &record->lanes[i];
        if (outcome->lane >= CC_LANES_MAX || outcome->committed > outcome->failed ||
            outcome->failed > outcome->posted)
            return false;
        const cc__lane *lane = group->lanes[outcome->lane];
        if (lane && outcome->failed < lane->outcome.failed) return false; /* it went back */
        lanes |= 1u << outcome->lane;
    }
    const cc_report *report = &group->report;
    for (uint32_t i = 0; i < report->n_lanes && report->epoch == group->epoch; i++)
        if (!(lanes >> report->lanes[i].lane & 1)) return false; /* what this peer reported */
    return found;
}

static cc_status set_members(cc__group *group, const cc_epoch *record) {
    uint32_t size = record->n_members;
    for (uint32_t i = 0; i < CC_LANES_MAX; i++)
        if (group->lanes[i]) cc__lane_free_seats(group->lanes[i], group->size);
    free_members(group);
    group->size = 0;
    group->members = malloc(size * sizeof *group->members);
    group->ranks = malloc(size * sizeof *group->ranks);
    group->member_links = calloc(size, sizeof(cc__link *));
    group->installed = calloc(size, sizeof *group->installed);
    group->gone = calloc(size, sizeof *group->gone);
    if (!group->members || !group->ranks || !group->member_links || !group->installed ||
        !group->gone)
        return CC_NO_MEMORY;
    memcpy(group->members, record->members, size * sizeof *group->members);
    for (uint32_t i = 0; i < size; i++) {
        group->ranks[i] = group->members[i].rank;
        if (memcmp(group->members[i].id.bytes, group->links->self.bytes, 16) == 0) group->me = i;
    }
    group->size = size;
    group->n_installed = 1;
    group->installed[group->me] = true;
    return CC_OK;
}

static cc_status set_lanes(cc__group *group, const cc_epoch *record, bool joiner) {
    for (uint32_t i = 0; i < record->n_lanes; i++) {
        cc__lane *lane = cc__lane_get(group, record->lanes[i].lane);
        if (lane == NULL) return CC_NO_MEMORY;
        if (record->lanes[i].failed > lane->outcome.failed)
            cc__lane_keep_reason(lane, &group->reason, record->lanes[i].failed);
        /* After a boundary members know of interruptions what joiners do: the record. */
        bool is_boundary = record->cause == CC_CAUSE_BOUNDARY;
        if (record->lanes[i].posted > lane->interrupted) lane->interruption = group->reason;
        if (record->lanes[i].posted > lane->interrupted || is_boundary)
            lane->interrupted = record->lanes[i].posted;
        lane->outcome = record->lanes[i];
        if (joiner) lane->posted = lane->outcome.failed;
    }
    for (uint32_t i = 0; i < CC_LANES_MAX; i++) {
        cc__lane *lane = group->lanes[i];
        if (lane == NULL) continue;
        cc__lane_decide(group, lane);
        cc__lane_free_seats(lane, group->size);
        if (cc__lane_renew(group, lane) != CC_OK) return CC_NO_MEMORY;
    }
    return CC_OK;
}

static void send_installed(cc__group *group, cc__link *link) {
    cc__frame frame = {.type = CC__INSTALLED, .group = group->id, .epoch = group->epoch};
    cc__links_send(group->links, link, &frame, NULL);
}

/* What a member has said of this epoch, now or before this peer came to it. */
static void hear_news(cc__group *group, uint32_t member) {
    const cc__link *link = group->member_links[member];
    const cc__news *news = cc__link_news(link, group->id);
    bool up = cc__link_lives(link); /* else it is greeted once it is up */
    if (up && news->installed == group->epoch) cc__pair_greet(group, member);
    if (up && news->installed == group->epoch && !group->installed[member]) {
        group->installed[member] = true;
        cc__group_trace(group, CC_TRACE_PEER_READY, 0, 0, &link->id);
        if (++group->n_installed == group->size) group->ready_due = true;
        if (group->state == CC__GROUP_SEALED) send_abort(group, member);
        for (uint32_t i = 0; i < CC_LANES_MAX && group->state == CC__GROUP_ACTIVE; i++)
            if (group->lanes[i]) cc__lane_greet(group, group->lanes[i], member);
    }
    if (news->aborted == group->epoch)
        cc__group_seal(group, (cc_cause)news->abort.cause, NULL, 0, "");
    if (news->goodbye)
        cc__group_on_evidence(group, group->member_links[member], CC_EVIDENCE_GOODBYE);
}

static cc_status connect_members(cc__group *group) {
    uint32_t serial = group->members[group->me].serial;
    for (uint32_t i = 0; i < group->size; i++) {
        if (i == group->me) continue;
        group->member_links[i] = cc__links_want(group->links, &group->members[i], serial);
        if (group->member_links[i] == NULL) return CC_NO_MEMORY;
    }
    return CC_OK;
}

cc_status cc__group_install(cc__group *group, const cc_epoch *record) {
    if (group->state == CC__GROUP_ENDED) return group->end;
    if (record->epoch <= group->epoch) return CC_OK;
    if (!valid_record(group, record)) return CC_INVALID;
    bool joiner = group->epoch == 0;
    release_buffers(group);
    cc__dispatch_keep(group, record);
    group->epoch = record->epoch;
    group->reason = (cc__reason){.cause = record->cause,
                                 .lost = record->lost,
                                 .lost_rank = record->lost_rank,
                                 .size = record->n_members,
                                 .min_size = record->min_size};
    snprintf(group->reason.detail, sizeof group->reason.detail, "%s",
             record->detail ? record->detail : "");
    group->network = record->network;
    group->world = record->world;
    group->min_size = record->min_size;
    if (record->cause == CC_CAUSE_BOUNDARY) group->joiners = 0;
    group->report_due = group->ready_due = group->stragglers_due = false;
    cc__group_trace(group, CC_TRACE_INSTALLED, record->cause, record->n_members, NULL);
    cc_status status = set_members(group, record);
    if (status == CC_OK) status = set_lanes(group, record, joiner);
    if (status == CC_OK) status = connect_members(group);
    if (status != CC_OK) {
        cc__group_end(group, status, "out of memory while installing an epoch");
        return status;
    }
    group->state = CC__GROUP_ACTIVE;
    cc__pair_renew(group);
    if (group->size == 1) group->ready_due = true;
    for (uint32_t i = 0; i < CC_LANES_MAX; i++)
        if (group->lanes[i]) cc__lane_resume(group, group->lanes[i]);
    for (uint32_t i = 0; i < group->size; i++) {
        if (i == group->me) continue;
        send_installed(group, group->member_links[i]);
        hear_news(group, i);
        if (group->member_links[i]->goodbye)
            cc__group_on_evidence(group, group->member_links[i], CC_EVIDENCE_GOODBYE);
    }
    return CC_OK;
}

void cc__group_end(cc__group *group, cc_status why, const char *message) {
    if (group->state == CC__GROUP_ENDED) return;
    cc__group_trace(group, CC_TRACE_GROUP_ENDED, why, 0, NULL);
    release_buffers(group);
    group->state = CC__GROUP_ENDED;
    group->end = why;
    cc__pair_end(group, why, message);
    snprintf(group->end_message, sizeof group->end_message, "%s", message);
    for (uint32_t i = 0; i < CC_LANES_MAX; i++) {
        cc__lane *lane = group->lanes[i];
        for (uint32_t slot = 0; lane && slot < CC_INFLIGHT_MAX; slot++) {
            cc__op *op = lane->ops[slot];
            if (op == NULL) continue;
            /* Told that it is no member any more, a leaver has what it asked for. */
            bool left = op->request.flags & CC_LEAVE &&
                        (why == CC_CLOSED || op->sequence <= lane->tally.committed);
            op->info.changed = left;
            cc__op_abandon(op, group->links, true);
            cc__lane_complete(group, lane, op, left ? CC_OK : why, left ? "" : message);
        }
    }
}

/* ---- what links tell ---------------------------------------------------------------------- */

void cc__group_on_connected(cc__group *group, cc__link *link) {
    int64_t member = cc__group_member(group, link);
    if (member < 0 || group->state == CC__GROUP_ENDED) return;
    cc__pair_connected(group, (uint32_t)member);
    send_installed(group, link);
    if (group->state == CC__GROUP_SEALED) send_abort(group, (uint32_t)member);
    hear_news(group, (uint32_t)member);
}

/* Whether an operation is open that the member has not voted for. */
static bool still_needed(const cc__group *group, uint32_t member) {
    for (uint32_t i = 0; i < CC_LANES_MAX; i++) {
        const cc__lane *lane = group->lanes[i];
        if (lane && lane->n_open > 0 && lane->posted > lane->tally.voted[member]) return true;
    }
    return false;
}

void cc__group_on_evidence(cc__group *group, cc__link *link, cc_evidence_kind evidence) {
    int64_t member = cc__group_member(group, link);
    if (member < 0 || group->state == CC__GROUP_ENDED) return;
    /* The peer lost its side of a session, most likely in the epoch before, and has a new one. */
    bool nothing_lost = link->state == CC__LINK_UP && !group->installed[member];
    if (evidence == CC_EVIDENCE_CLOSED && nothing_lost) return;
    if (evidence == CC_EVIDENCE_GOODBYE) {
        /* An orderly end disturbs nobody who needs nothing of the peer. */
        bool needed = group->state != CC__GROUP_ACTIVE || still_needed(group, (uint32_t)member);
        group->gone[member] = true;
        cc__pair_gone(group, &link->id);
        if (!needed) return;
    }
    cc__group_seal(group, CC_CAUSE_LOST, &link->id, evidence, "");
}

void cc__group_on_frame(cc__group *group, cc__link *link, const cc__frame *frame) {
    int64_t found = cc__group_member(group, link);
    if (found < 0 || group->state == CC__GROUP_ENDED) return;
    uint32_t member = (uint32_t)found;
    if (cc__pair_is_frame(frame)) cc__pair_on_frame(group, member, frame);
    if (frame->type == CC__BYE) hear_news(group, member);
    if (frame->epoch != group->epoch) return;
    switch (frame->type) {
    case CC__INSTALLED:
    case CC__ABORT: hear_news(group, member); break;
    case CC__VOTE:
        if (group->state == CC__GROUP_ACTIVE) cc__lane_on_vote(group, member, frame);
        break;
    case CC__READY:
        if (group->state == CC__GROUP_ACTIVE) cc__lane_on_ready(group, member, frame);
        break;
    default: break;
    }
}

/* ---- progress ----------------------------------------------------------------------------- */

bool cc__group_pump(cc__group *group) {
    bool more = group->pairs.active && cc__pair_pump(group);
    cc__op *op = group->active;
    while (op) {
        cc__op *next = op->next_active;
        if (op->more) {
            cc__op_pump(op, group->links, group->member_links);
            more |= op->more;
        }
        if (op->done) {
            cc__lane *lane = group->lanes[op->request.lane];
            cc__op_delist(op);
            cc__lane_advance(group, lane);
            next = group->active; /* anything may have completed */
        }
        op = next;
    }
    return more;
}

static int64_t tick_lanes(cc__group *group, int64_t now) {
    if (group->state != CC__GROUP_ACTIVE) return CC__NEVER;
    if (now < group->deadline_ns) return group->deadline_ns;
    group->deadline_ns = CC__NEVER;
    for (uint32_t i = 0; i < CC_LANES_MAX; i++) {
        const cc__lane *lane = group->lanes[i];
        for (uint32_t slot = 0; lane && slot < CC_INFLIGHT_MAX; slot++) {
            const cc__op *op = lane->ops[slot];
            if (op == NULL) continue;
            if (op->deadline_ns <= now) {
                char detail[CC_DETAIL_MAX], why[CC_DETAIL_MAX / 2];
                cc__stragglers_text(group, lane, op, why, sizeof why);
                snprintf(detail, sizeof detail,
                         "the timeout of operation %llu passed at rank %u%s; inputs are intact",
                         (unsigned long long)op->sequence, group->ranks[group->me], why);
                cc__group_seal(group, CC_CAUSE_DEADLINE, NULL, 0, detail);
                group->deadline_ns = op->deadline_ns; /* if it goes on, it is looked at again */
                return CC__NEVER;
            }
            if (op->deadline_ns < group->deadline_ns) group->deadline_ns = op->deadline_ns;
        }
    }
    return group->deadline_ns;
}

int64_t cc__group_tick(cc__group *group, int64_t now) {
    int64_t lanes = tick_lanes(group, now), pairs = cc__pair_tick(group, now);
    int64_t next = cc__dispatch_tick(group, now), look = cc__stragglers_tick(group, now);
    if (lanes < next) next = lanes;
    if (look < next) next = look;
    return pairs < next ? pairs : next;
}
