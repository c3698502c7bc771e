/* One step of a context: transport events become link events, those move groups, and what came of
 * it is left for the caller and the agent. */
#include "csrc/group/context.h"

#include "csrc/base/pool.h"
#include "csrc/group/mend.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define GAUGE_TURNS 12            /* latencies until a new link has found its speed: a few turns */
#define GAUGE_MIN_NS (2 * CC__MS) /* and for the software on both ends */
#define EVENTS_PER_STEP 64
/* Of this machine's memory, not of the protocol. */
#define TRIM_NS (1000 * CC__MS)  /* between looks at the pool */
#define KEEP_NS (30000 * CC__MS) /* what nobody wants for so long goes back to the system */

cc__group *cc__context_group(cc_context *context, uint32_t id, bool create) {
    for (uint32_t i = 0; i < context->n_groups; i++)
        if (context->groups[i]->id == id) return context->groups[i];
    if (!create || context->n_groups == CC_GROUPS_MAX) return NULL;
    cc__group *group = cc__group_new(id, &context->links);
    if (group) context->groups[context->n_groups++] = group;
    return group;
}

bool cc__context_has_work(const cc_context *context) {
    for (uint32_t i = 0; i < context->n_groups; i++)
        if (context->groups[i]->n_open + context->groups[i]->pairs.n_open > 0) return true;
    return false;
}

static bool is_member(const cc_context *context, const cc__link *link) {
    for (uint32_t i = 0; i < context->n_groups; i++)
        if (cc__group_has(context->groups[i], link)) return true;
    return false;
}

void cc__context_drop_strangers(cc_context *context) {
    if (context->rehearsing) return;
    for (cc__link *link = context->links.first, *next; link; link = next) {
        next = link->next;
        if (link->wanted && !is_member(context, link)) cc__links_drop(&context->links, link);
    }
}

bool cc__context_has_closed(const cc_context *context, uint32_t id) {
    for (uint32_t i = 0; i < CC_CLOSED_GROUPS_MAX && id > 0; i++)
        if (context->closed_groups[i] == id) return true;
    return false;
}

void cc__context_close_group(cc_context *context, uint32_t id) {
    if (!cc__context_has_closed(context, id))
        context->closed_groups[context->n_closed++ % CC_CLOSED_GROUPS_MAX] = id;
    for (cc__link *link = context->links.first; link; link = link->next) {
        const cc__group *group = cc__context_group(context, id, false);
        bool concerned =
            cc__link_news(link, id)->group == id || (group && cc__group_has(group, link));
        if (concerned) cc__links_decline(&context->links, link, id);
    }
    for (uint32_t i = 0; i < context->n_groups; i++) {
        cc__group *group = context->groups[i];
        if (group->id != id) continue;
        cc__group_end(group, CC_CLOSED, "the communicator was closed");
        context->retired += group->finished + group->pairs.finished;
        context->groups[i] = context->groups[--context->n_groups];
        cc__group_free(group);
        break;
    }
    cc__context_drop_strangers(context);
}

/* A frame of no group of ours. Who takes part in one that this peer has closed is told so. */
static void on_foreign_frame(cc_context *context, cc__link *link, const cc__frame *frame) {
    if (!cc__context_has_closed(context, frame->group)) return;
    if (frame->type == CC__INSTALLED)
        cc__links_decline(&context->links, link, frame->group);
    else
        cc__link_forget(link, frame->group);
}

/* The links of a rehearsal are up. */
static void await_gauges(cc_context *context) {
    int64_t latency = (int64_t)cc__links_network(&context->links).latency_ns;
    context->prepared = CC_OK;
    context->gauged_ns = cc__now(&context->clock) + GAUGE_TURNS * latency + GAUGE_MIN_NS;
}

cc_status cc__context_rehearse(cc_context *context, uint32_t serial, const cc_member *members,
                               uint32_t count) {
    context->rehearsing = true;
    context->prepared = CC_PENDING;
    context->prepared_due = false;
    context->prepared_peer = (cc_peer_id){0};
    context->gauged_ns = CC__NEVER;
    context->more = true;
    for (cc__link *link = context->links.first; link; link = link->next)
        link->wanted = is_member(context, link); /* an earlier rehearsal may have wanted others */
    bool all_up = true;
    for (uint32_t i = 0; i < count; i++) {
        if (members[i].serial == serial) continue;
        cc__link *link = cc__links_want(&context->links, &members[i], serial);
        if (link == NULL) return CC_NO_MEMORY;
        all_up &= link->state == CC__LINK_UP;
    }
    if (all_up) await_gauges(context);
    return CC_OK;
}

/* A link of a rehearsal came up or failed. */
static void on_rehearsed(cc_context *context, const cc__link_event *event) {
    if (!context->rehearsing || context->prepared_due || context->prepared != CC_PENDING) return;
    if (event->kind == CC__LINK_LOST || event->kind == CC__LINK_EVIDENCE) {
        if (!event->link->wanted) return;
        context->prepared = event->kind == CC__LINK_LOST ? event->status : CC_TIMED_OUT;
        if (context->prepared == CC_OK) context->prepared = CC_CLOSED;
        context->prepared_peer = event->link->id;
        context->prepared_due = true;
        return;
    }
    for (const cc__link *link = context->links.first; link; link = link->next)
        if (link->wanted && link->state != CC__LINK_UP) return;
    await_gauges(context);
}

static void trace_link(cc_context *context, const cc__link_event *event) {
    cc_trace_kind kind;
    switch (event->kind) {
    case CC__LINK_CONNECTED: kind = CC_TRACE_LINK_UP; break;
    case CC__LINK_MENDED: kind = CC_TRACE_LINK_MENDED; break;
    case CC__LINK_LOST: kind = CC_TRACE_LINK_LOST; break;
    case CC__LINK_EVIDENCE: kind = CC_TRACE_EVIDENCE; break;
    default: return;
    }
    cc__link_trace(&context->links, event->link, kind, event->status, event->evidence);
}

static void on_link_event(cc_context *context, const cc__link_event *event) {
    cc__group *group;
    cc__channel *channel = event->channel;
    trace_link(context, event);
    switch (event->kind) {
    case CC__LINK_CONNECTED:
        for (uint32_t i = 0; i < context->n_groups; i++)
            cc__group_on_connected(context->groups[i], event->link);
        on_rehearsed(context, event);
        break;
    case CC__LINK_MENDED:
        for (uint32_t i = 0; i < context->n_groups; i++)
            cc__group_on_mended(context->groups[i], event->link);
        cc__links_resumed(&context->links, event->link);
        on_rehearsed(context, event);
        break;
    case CC__LINK_LOST:
    case CC__LINK_EVIDENCE:
        for (uint32_t i = 0; i < context->n_groups; i++)
            cc__group_on_evidence(context->groups[i], event->link, event->evidence);
        on_rehearsed(context, event);
        break;
    case CC__LINK_FRAME:
        group = cc__context_group(context, channel->frame.group, false);
        if (channel->frame.type == CC__RESUMED)
            for (uint32_t i = 0; i < context->n_groups; i++)
                cc__group_on_resumed(context->groups[i], event->link);
        else if (group)
            cc__group_on_frame(group, event->link, &channel->frame);
        else
            on_foreign_frame(context, event->link, &channel->frame);
        break;
    case CC__LINK_WANT:
        group = cc__context_group(context, channel->frame.group, false);
        if (group)
            cc__group_on_want(group, channel);
        else
            cc__links_place(&context->links, channel, NULL, NULL);
        break;
    case CC__LINK_PAYLOAD:
        group = cc__context_group(context, channel->frame.group, false);
        if (group && channel->frame.type == CC__RESUME)
            cc__group_on_resume(group, channel);
        else if (group)
            cc__group_on_payload(group, channel);
        break;
    case CC__LINK_SENT:
        if (event->owner) cc__op_sent(event->owner, event->move, event->bytes);
        for (uint32_t i = 0; i < context->n_groups; i++) {
            const cc__group *any = context->groups[i];
            for (cc__op *op = any->active; op; op = op->next_active) op->more = true;
            for (cc__op *op = any->pairs.active; op; op = op->next_active) op->more = true;
        }
        break;
    }
}

static void drain_links(cc_context *context) {
    cc__link_event event;
    while (cc__links_next(&context->links, &event)) {
        on_link_event(context, &event);
        if (event.kind != CC__LINK_PAYLOAD) continue;
        for (uint32_t i = 0; i < context->n_groups; i++) /* forward it while it is in cache */
            context->more |= cc__group_pump(context->groups[i]);
    }
}

/* Another member brought an epoch, as else cc_install does. */
static void on_told(cc_context *context, cc__group *group) {
    if (!group->dispatch.told) return;
    group->dispatch.told = false;
    cc__context_drop_strangers(context);
    context->more = true;
    context->epochs++;
}

static void raise_event(cc_context *context) {
    if (context->event_raised) return;
    context->event_raised = true;
    uint64_t one = 1;
    ssize_t written;
    do written = write(context->event_write_fd, &one, sizeof one);
    while (written < 0 && errno == EINTR);
}

void cc__context_collect(cc_context *context) {
    uint64_t finished = context->retired;
    bool due = context->prepared_due;
    for (uint32_t i = 0; i < context->n_groups; i++) {
        const cc__group *group = context->groups[i];
        finished += group->finished + group->pairs.finished;
        due |= group->report_due || group->ready_due || group->stragglers_due;
        due |= group->dispatch.told_due || group->dispatch.letters_due;
    }
    if (due) raise_event(context);
    if (finished == context->finished) return;
    context->finished = finished;
    if (context->sleepers > 0) pthread_cond_broadcast(&context->changed);
}

bool cc__context_step(cc_context *context) {
    cc_transport_event events[EVENTS_PER_STEP];
    cc__links *links = &context->links;
    int count = context->transport->ops->poll(context->transport, events, EVENTS_PER_STEP);
    bool moved = count > 0 || context->more;
    context->more = false;
    for (uint32_t turns = links->n_resuming; turns > 0 && cc__links_resume(links); turns--) {
        drain_links(context);
        moved = true;
    }
    for (int i = 0; i < count; i++) {
        cc__links_feed(links, &events[i]);
        drain_links(context);
    }
    int64_t now = cc__links_now(links), next = cc__links_tick(links, now);
    context->stepped_ns = now;
    if (now - context->trimmed_ns >= TRIM_NS) {
        context->trimmed_ns = now;
        cc__pool_trim(now, now - KEEP_NS);
    }
    drain_links(context);
    for (uint32_t i = 0; i < context->n_groups; i++) {
        int64_t deadline = cc__group_tick(context->groups[i], now);
        if (deadline < next) next = deadline;
        context->more |= cc__group_pump(context->groups[i]);
    }
    drain_links(context);
    for (uint32_t i = 0; i < context->n_groups; i++) on_told(context, context->groups[i]);
    if (now >= context->gauged_ns) {
        context->gauged_ns = CC__NEVER;
        context->prepared_due = true;
    }
    if (context->gauged_ns < next) next = context->gauged_ns;
    int64_t transport_next = context->transport->ops->deadline(context->transport);
    context->next_ns = transport_next < next ? transport_next : next;
    context->more |= links->n_resuming > 0;
    cc__context_collect(context);
    return moved;
}

/* Whether there is an event. */
static bool take_event(cc_context *context, cc_event *out) {
    if (context->prepared_due) {
        context->prepared_due = false;
        out->kind = CC_EVENT_PREPARED;
        out->status = context->prepared;
        out->peer = context->prepared_peer;
        return true;
    }
    for (uint32_t i = 0; i < context->n_groups; i++) {
        cc__group *group = context->groups[i];
        out->group = group->id;
        out->epoch = group->epoch;
        if (group->dispatch.told_due) {
            group->dispatch.told_due = false;
            out->kind = CC_EVENT_TOLD;
            return true;
        }
        if (group->report_due) {
            group->report_due = false;
            cc__group_trace(group, CC_TRACE_REPORTED, 0, 0, NULL);
            out->kind = CC_EVENT_SEALED;
            out->report = group->report;
            return true;
        }
        if (cc__dispatch_take(group, out)) return true;
        if (group->ready_due) {
            group->ready_due = false;
            out->kind = CC_EVENT_READY;
            return true;
        }
        if (cc__stragglers_take(group, out)) return true;
    }
    return false;
}

cc_status cc__context_next_event(cc_context *context, cc_event *out) {
    memset(out, 0, sizeof *out);
    if (take_event(context, out)) {
        out->network = cc__links_network(&context->links);
        return CC_OK;
    }
    if (context->event_raised) {
        uint64_t count;
        ssize_t got = read(context->event_fd, &count, sizeof count);
        (void)got;
        context->event_raised = false;
    }
    return CC_PENDING;
}
