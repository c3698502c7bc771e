/* Who is told what over the data links, and what is made of it. Whatever comes is compared with the
 * own epoch: an honest member says nothing that contradicts it. */
#include "csrc/group/dispatch.h"

#include "csrc/group/group.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATIENCE 8 /* the agents have this part of a beat before others step in */
#define CARRIERS 8 /* members that a report is sent to */

_Static_assert(CC__SEALED_BYTES_MAX <= CC_EAGER_BYTES && CC__EPOCH_BYTES_MAX <= CC_EAGER_BYTES,
               "stream 0 has room for so much");

static int64_t beat_ns(const cc__group *group) {
    return group->links->timeouts.beat_ms * CC__MS;
}

static int64_t patience_until(const cc__group *group) {
    return cc__now(&group->links->clock) + beat_ns(group) / PATIENCE;
}

/* ---- sending ------------------------------------------------------------------------------ */

void cc__dispatch_sealed(cc__group *group) {
    group->dispatch.report_ns = patience_until(group);
    group->dispatch.reported = false;
}

void cc__dispatch_evidence(cc__group *group) {
    if (group->dispatch.reported) group->dispatch.report_ns = 0;
}

static void send(cc__group *group, uint32_t member, uint8_t type, const uint8_t *payload,
                 uint32_t length) {
    cc__frame frame = {.type = type, .group = group->id, .epoch = group->epoch, .length = length};
    cc__links_send(group->links, group->member_links[member], &frame, payload);
}

/* Sends the own report to CARRIERS members, or all if there are no more: the first of each part of
 * the ring that can be reached. */
static void send_report(cc__group *group) {
    uint8_t payload[CC__SEALED_BYTES_MAX];
    uint32_t length = cc__sealed_pack(&group->report, payload), others = group->size - 1;
    uint32_t parts = others < CARRIERS ? others : CARRIERS;
    for (uint32_t part = 0; part < parts; part++) {
        for (uint32_t i = part * others / parts; i < (part + 1) * others / parts; i++) {
            uint32_t member = (group->me + 1 + i) % group->size;
            if (group->member_links[member]->state != CC__LINK_UP) continue;
            send(group, member, CC__SEALED, payload, length);
            break;
        }
    }
}

/* Tells a member of the present epoch, if it has not installed it and can make it of its own. */
static void tell(cc__group *group, uint32_t member) {
    const cc__dispatch *dispatch = &group->dispatch;
    if (dispatch->record_bytes == 0 || group->installed[member]) return;
    send(group, member, CC__EPOCH, dispatch->record, dispatch->record_bytes);
}

int64_t cc__dispatch_tick(cc__group *group, int64_t now) {
    cc__dispatch *dispatch = &group->dispatch;
    if (group->state != CC__GROUP_ACTIVE && group->state != CC__GROUP_SEALED) return CC__NEVER;
    if (now >= dispatch->record_ns) {
        for (uint32_t i = 0; i < group->size; i++) tell(group, i);
        bool all = group->n_installed == group->size;
        dispatch->record_ns = all ? CC__NEVER : now + beat_ns(group);
    }
    if (group->state != CC__GROUP_SEALED) return dispatch->record_ns;
    if (now >= dispatch->report_ns) {
        send_report(group);
        dispatch->reported = true;
        dispatch->report_ns = now + beat_ns(group);
    }
    return dispatch->report_ns < dispatch->record_ns ? dispatch->report_ns : dispatch->record_ns;
}

/* ---- the record, as a change of the one before -------------------------------------------- */

static bool same_member(const cc_member *a, const cc_member *b) {
    return memcmp(a->id.bytes, b->id.bytes, 16) == 0 && a->rank == b->rank &&
           a->serial == b->serial && a->host == b->host && strcmp(a->address, b->address) == 0;
}

/* Marks who stays. False: somebody is new, or another one than before. */
static bool mark_members(const cc__group *group, const cc_epoch *record, cc__delta *delta) {
    uint32_t next = 0;
    delta->size = group->size;
    for (uint32_t i = 0; i < group->size && next < record->n_members; i++) {
        if (!same_member(&group->members[i], &record->members[next])) continue;
        delta->stay[i / 8] |= (uint8_t)(1u << (i % 8));
        next++;
    }
    return next == record->n_members;
}

static bool mark_lanes(const cc_epoch *record, cc__delta *delta) {
    delta->n_lanes = record->n_lanes;
    for (uint32_t i = 0; i < record->n_lanes; i++) {
        uint32_t at = i; /* they may come in any order */
        for (; at > 0 && delta->lanes[at - 1].lane > record->lanes[i].lane; at--)
            delta->lanes[at] = delta->lanes[at - 1];
        if (at > 0 && delta->lanes[at - 1].lane == record->lanes[i].lane) return false;
        delta->lanes[at] = record->lanes[i];
    }
    return true;
}

void cc__dispatch_keep(cc__group *group, const cc_epoch *record) {
    cc__dispatch *dispatch = &group->dispatch;
    dispatch->report_ns = dispatch->record_ns = CC__NEVER;
    dispatch->record_bytes = 0;
    dispatch->told = dispatch->told_due = false;
    bool follows = group->epoch > 0 && record->epoch == group->epoch + 1 &&
                   record->world == group->world && record->min_size == group->min_size;
    if (!follows || record->cause < CC_CAUSE_LOST || record->cause > CC_CAUSE_MISMATCH) return;
    cc__delta delta = {.cause = record->cause,
                       .lost = record->lost,
                       .lost_rank = record->lost_rank,
                       .network = record->network};
    if (record->detail) snprintf(delta.detail, sizeof delta.detail, "%s", record->detail);
    if (!mark_members(group, record, &delta) || !mark_lanes(record, &delta)) return;
    dispatch->record_bytes = cc__delta_pack(&delta, dispatch->record);
    dispatch->record_ns = patience_until(group);
}

/* Whether the outcomes can be true for this peer, which took part with its report: it is done with
 * what is committed, and what it posted counts as posted. */
static bool agrees(const cc__group *group, const cc__delta *delta) {
    const cc_report *report = &group->report;
    uint32_t used = 0;
    for (uint32_t i = 0; i < report->n_lanes; i++) used |= 1u << report->lanes[i].lane;
    for (uint32_t i = 0; i < delta->n_lanes; i++) {
        const cc_outcome *outcome = &delta->lanes[i];
        if (!(used >> outcome->lane & 1) && outcome->committed > 0) return false;
        for (uint32_t j = 0; j < report->n_lanes; j++) {
            const cc_lane_report *mine = &report->lanes[j];
            if (mine->lane != outcome->lane) continue;
            if (mine->done < outcome->committed || mine->posted > outcome->posted) return false;
        }
    }
    return true; /* cc__group_install looks for lanes that are missing */
}

static cc_status install(cc__group *group, const cc__delta *delta) {
    cc_member *members = malloc(group->size * sizeof *members);
    if (members == NULL) return CC_NO_MEMORY;
    cc_epoch record = {.group = group->id,
                       .epoch = group->epoch + 1,
                       .cause = delta->cause,
                       .world = group->world,
                       .min_size = group->min_size,
                       .network = delta->network,
                       .lost = delta->lost,
                       .lost_rank = delta->lost_rank,
                       .detail = delta->detail,
                       .members = members,
                       .lanes = delta->lanes,
                       .n_lanes = delta->n_lanes};
    for (uint32_t i = 0; i < group->size; i++)
        if (cc__delta_stays(delta, i)) members[record.n_members++] = group->members[i];
    cc_status status = cc__group_install(group, &record);
    free(members);
    return status;
}

/* ---- what members send -------------------------------------------------------------------- */

bool cc__dispatch_is_frame(const cc__frame *frame) {
    return frame->type == CC__SEALED || frame->type == CC__EPOCH;
}

static void accuse(cc__group *group, uint32_t member) {
    cc__links_accuse(group->links, group->member_links[member]);
}

static void take_record(cc__group *group, uint32_t member, const cc__frame *frame,
                        const uint8_t *payload) {
    cc__delta delta;
    if (cc__delta_unpack(payload, frame->length, &delta) != CC_OK) {
        accuse(group, member);
        return;
    }
    if (frame->epoch != group->epoch + 1) return; /* it was heard before */
    bool possible = delta.size == group->size && cc__delta_stays(&delta, group->me) &&
                    cc__delta_stays(&delta, member);
    if (!possible) {
        accuse(group, member);
        return;
    }
    cc__group_seal(group, delta.cause, NULL, 0, "");
    cc_status status = agrees(group, &delta) ? install(group, &delta) : CC_INVALID;
    if (status == CC_OK) group->dispatch.told = group->dispatch.told_due = true;
    if (status == CC_INVALID) accuse(group, member);
}

static void keep_letter(cc__group *group, uint32_t member, const cc__frame *frame,
                        const uint8_t *payload) {
    cc__dispatch *dispatch = &group->dispatch;
    if (dispatch->letters == NULL)
        dispatch->letters = calloc(group->size, sizeof *dispatch->letters);
    if (dispatch->letters == NULL) return; /* it comes again */
    cc__letter *known = dispatch->letters[member];
    if (known && known->epoch == frame->epoch && known->length == frame->length &&
        memcmp(known->bytes, payload, frame->length) == 0)
        return;
    cc__letter *letter = malloc(sizeof *letter + frame->length);
    if (letter == NULL) return;
    *letter = (cc__letter){.epoch = frame->epoch, .due = true, .length = frame->length};
    memcpy(letter->bytes, payload, frame->length);
    free(known);
    dispatch->letters[member] = letter;
    dispatch->letters_due = true;
}

static void take_report(cc__group *group, uint32_t member, const cc__frame *frame,
                        const uint8_t *payload) {
    cc_report report;
    if (cc__sealed_unpack(payload, frame->length, &report) != CC_OK) {
        accuse(group, member);
        return;
    }
    /* A member that is one epoch behind has missed the record; one that is ahead reports on an
     * epoch that this peer's own agent has yet to install. */
    if (frame->epoch == group->epoch - 1)
        tell(group, member);
    else if (frame->epoch == group->epoch || frame->epoch == group->epoch + 1)
        keep_letter(group, member, frame, payload);
}

void cc__dispatch_on_payload(cc__group *group, uint32_t member, const cc__channel *channel) {
    const cc__frame *frame = &channel->frame;
    if (group->state != CC__GROUP_ACTIVE && group->state != CC__GROUP_SEALED) return;
    if (frame->type == CC__SEALED)
        take_report(group, member, frame, channel->place);
    else
        take_record(group, member, frame, channel->place);
}

void cc__dispatch_forget(cc__group *group) {
    cc__dispatch *dispatch = &group->dispatch;
    for (uint32_t i = 0; dispatch->letters && i < group->size; i++) free(dispatch->letters[i]);
    free(dispatch->letters);
    dispatch->letters = NULL;
    dispatch->letters_due = false;
}

/* ---- for the agent ------------------------------------------------------------------------ */

bool cc__dispatch_take(cc__group *group, cc_event *out) {
    cc__dispatch *dispatch = &group->dispatch;
    for (uint32_t i = 0; dispatch->letters_due && i < group->size; i++) {
        cc__letter *letter = dispatch->letters[i];
        if (letter == NULL || !letter->due) continue;
        letter->due = false;
        cc__sealed_unpack(letter->bytes, letter->length, &out->report);
        out->report.group = group->id;
        out->report.epoch = letter->epoch;
        out->peer = group->members[i].id;
        out->kind = CC_EVENT_SEALED;
        return true;
    }
    dispatch->letters_due = false;
    return false;
}

cc_status cc__dispatch_record(const cc__group *group, cc_epoch *out, cc_member *members,
                              uint32_t room, cc_outcome *lanes, char *detail) {
    if (group->size == 0 || group->state == CC__GROUP_ENDED) return CC_INVALID;
    if (group->size > room) return CC_NO_MEMORY;
    *out = (cc_epoch){.group = group->id,
                      .epoch = group->epoch,
                      .cause = group->reason.cause,
                      .world = group->world,
                      .min_size = group->min_size,
                      .network = group->network,
                      .lost = group->reason.lost,
                      .lost_rank = group->reason.lost_rank,
                      .detail = detail,
                      .members = members,
                      .n_members = group->size,
                      .lanes = lanes};
    memcpy(detail, group->reason.detail, CC_DETAIL_MAX);
    memcpy(members, group->members, group->size * sizeof *members);
    for (uint32_t i = 0; i < CC_LANES_MAX; i++)
        if (group->lanes[i]) lanes[out->n_lanes++] = group->lanes[i]->outcome;
    return CC_OK;
}
