/* The public entry points: arguments are checked here, before anything is locked or sent. */
#include "csrc/group/context.h"

#include "csrc/base/pool.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define READAHEAD_BYTES (64u << 10)

void cc_options_default(cc_options *options) {
    *options = (cc_options){
        .transport = "tcp",
        .bind_address = "127.0.0.1:0",
        .streams = 2,
        .segment_bytes = 512u << 10,
        .timeouts = {.beat_ms = 200, .dead_ms = 2000, .connect_ms = 5000, .linger_ms = 1000},
        .trace_events = 16384,
    };
}

static const char *bad_option(const cc_options *options) {
    if (options->streams < 1 || options->streams > CC_STREAMS_MAX)
        return "streams must be between 1 and 16";
    if (options->segment_bytes < CC_SEGMENT_MIN || options->segment_bytes > CC_SEGMENT_MAX ||
        options->segment_bytes % 64 != 0)
        return "segment_bytes must be a multiple of 64 between 64 and 1 MiB";
    if (options->port_first > options->port_last)
        return "the port range must not end before it starts";
    if (options->trace_events > CC_TRACE_EVENTS_MAX) return "trace_events must be at most 1048576";
    const cc_timeouts *t = &options->timeouts;
    if (t->beat_ms < 1 || t->dead_ms <= t->beat_ms || t->connect_ms < 1)
        return "timeouts must be positive, and dead longer than beat";
    if (t->suspect_ms && (t->suspect_ms < t->beat_ms || t->suspect_ms >= t->dead_ms))
        return "suspect must lie between beat and dead";
    return NULL;
}

static cc_status say(char *message, cc_status status, const char *text) {
    if (message) snprintf(message, CC_MESSAGE_MAX, "%s", text);
    return status;
}

static void unref(cc_context *context) {
    cc__lock(context);
    uint32_t left = --context->references;
    cc__unlock(context);
    if (left > 0) return;
    pthread_mutex_destroy(&context->lock);
    pthread_cond_destroy(&context->changed);
    pthread_cond_destroy(&context->work_due);
    cc__trace_close(context->links.trace);
    free(context);
}

cc_status cc_context_open(const cc_options *options, cc_context **out, char *message) {
    char scratch[CC_MESSAGE_MAX];
    if (message == NULL) message = scratch;
    message[0] = 0;
    *out = NULL;
    const char *bad = bad_option(options);
    if (bad) return say(message, CC_INVALID, bad);
    const cc_transport_ops *ops = cc_transport_find(options->transport);
    if (ops == NULL) return say(message, CC_INVALID, "there is no transport of that name");
    cc_context *context = calloc(1, sizeof *context);
    if (context == NULL) return say(message, CC_NO_MEMORY, "out of memory");
    int fds[2] = {-1, -1};
    cc_transport_options settings = {.options = options,
                                     .clock = cc__clock_monotonic(),
                                     .readahead_bytes = READAHEAD_BYTES,
                                     .header_bytes = CC_HEADER_BYTES};
    cc_status status = ops->open(&settings, &context->transport, message);
    if (status != CC_OK) goto fail;
    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0) {
        status = say(message, CC_SYSTEM, "no pipe for events: too many open files?");
        goto fail;
    }
    context->event_fd = fds[0];
    context->event_write_fd = fds[1];
    context->clock = ops->clock(context->transport);
    context->options = *options;
    context->references = 1;
    context->gauged_ns = CC__NEVER;
    context->next_ns = cc__now(&context->clock);
    cc__links_start(&context->links, context->transport, options);
    if (options->trace_events) context->links.trace = cc__trace_open(options->trace_events);
    if (options->trace_events && context->links.trace == NULL) {
        status = say(message, CC_NO_MEMORY, "no memory for the flight recorder");
        goto fail;
    }
    status = cc__progress_start(context);
    if (status != CC_OK) {
        say(message, status, "cannot start a thread");
        goto fail;
    }
    cc__progress_register(context);
    *out = context;
    return CC_OK;
fail:
    if (fds[0] >= 0) {
        close(fds[0]);
        close(fds[1]);
    }
    if (context->transport) ops->stop(context->transport, 1);
    cc__trace_close(context->links.trace);
    free(context);
    return status;
}

void cc_context_address(const cc_context *context, char *out) {
    out[0] = 0;
    if (context->transport) context->transport->ops->address(context->transport, out);
}

void cc_context_set_token(cc_context *context, const uint8_t token[16]) {
    cc__lock(context);
    memcpy(context->links.token, token, 16);
    if (!context->closed) context->transport->ops->set_token(context->transport, token);
    cc__unlock(context);
}

void cc_context_close(cc_context *context, int abort) {
    cc__lock(context);
    bool closed = context->closed;
    context->closed = true;
    if (!closed) {
        for (uint32_t i = 0; i < context->n_groups; i++)
            cc__group_end(context->groups[i], CC_CLOSED, "the communicator was closed");
        cc__context_collect(context);
    }
    cc__unlock(context);
    if (closed) return;
    cc__progress_unregister(context);
    cc__progress_stop(context);
    cc__lock(context);
    if (!abort) cc__progress_goodbye(context);
    cc__links_stop(&context->links, abort);
    cc__unlock(context);
    cc__pool_trim(cc__now(&context->clock), CC__NEVER);
    context->transport->ops->stop(context->transport, abort);
    context->transport = NULL;
    close(context->event_fd);
    close(context->event_write_fd);
}

void cc_context_free(cc_context *context) {
    if (context == NULL) return;
    cc_context_close(context, 1);
    for (uint32_t i = 0; i < context->n_groups && !context->forked; i++)
        cc__group_free(context->groups[i]);
    context->n_groups = 0;
    unref(context);
}

int cc_context_fd(const cc_context *context) {
    return context->event_fd;
}

int64_t cc_step(cc_context *context) {
    cc__lock(context);
    int64_t next = CC__NEVER;
    if (!context->closed) {
        cc__context_step(context);
        next = context->more ? cc__now(&context->clock) : context->next_ns;
    }
    cc__unlock(context);
    return next;
}

/* ---- membership --------------------------------------------------------------------------- */

cc_status cc_install(cc_context *context, const cc_epoch *epoch) {
    cc__lock(context);
    cc_status status = CC_CLOSED;
    if (!context->closed && !cc__context_has_closed(context, epoch->group)) {
        cc__group *group = cc__context_group(context, epoch->group, true);
        status = group ? cc__group_install(group, epoch) : CC_BUSY;
        if (status == CC_OK) {
            context->rehearsing = false;
            cc__context_drop_strangers(context);
            context->more = true;
            context->epochs++;
            cc__context_collect(context);
            cc__progress_kick(context);
        }
    }
    cc__unlock(context);
    return status;
}

cc_status cc_record(cc_context *context, uint32_t group_id, cc_epoch *out, cc_member *members,
                    uint32_t room, cc_outcome *lanes, char *detail) {
    cc__lock(context);
    const cc__group *group = cc__context_group(context, group_id, false);
    cc_status status = CC_INVALID;
    if (!context->closed && group)
        status = cc__dispatch_record(group, out, members, room, lanes, detail);
    cc__unlock(context);
    return status;
}

cc_status cc_prepare(cc_context *context, uint32_t serial, const cc_member *members,
                     uint32_t count) {
    cc__lock(context);
    cc_status status = context->closed ? CC_CLOSED : CC_OK;
    if (status == CC_OK) {
        status = cc__context_rehearse(context, serial, members, count);
        cc__context_collect(context);
        cc__progress_kick(context);
    }
    cc__unlock(context);
    return status;
}

void cc_set_pending(cc_context *context, uint32_t group_id, uint32_t joiners) {
    cc__lock(context);
    cc__group *group = cc__context_group(context, group_id, false);
    if (group && group->joiners != joiners) {
        group->joiners = joiners;
        cc__group_trace(group, CC_TRACE_PENDING, 0, joiners, NULL);
    }
    cc__unlock(context);
}

void cc_seal(cc_context *context, uint32_t group_id, uint64_t epoch) {
    cc__lock(context);
    cc__group *group = cc__context_group(context, group_id, false);
    if (!context->closed && group && group->epoch == epoch) {
        cc__group_seal(group, CC_CAUSE_LOST, NULL, 0, "");
        cc__context_collect(context);
        cc__progress_kick(context);
    }
    cc__unlock(context);
}

void cc_expel(cc_context *context, uint32_t group_id, cc_status why, const char *reason) {
    cc__lock(context);
    cc__group *group = context->closed ? NULL : cc__context_group(context, group_id, true);
    if (group) {
        cc__group_end(group, why, reason);
        cc__context_drop_strangers(context);
        cc__context_collect(context);
        cc__progress_kick(context);
    }
    cc__unlock(context);
}

void cc_group_close(cc_context *context, uint32_t group) {
    cc__lock(context);
    if (!context->closed && group > 0) {
        cc__context_close_group(context, group);
        cc__context_collect(context);
        cc__progress_kick(context);
    }
    cc__unlock(context);
}

cc_status cc_next_event(cc_context *context, cc_event *out) {
    cc__lock(context);
    cc_status status = context->closed ? CC_CLOSED : cc__context_next_event(context, out);
    cc__unlock(context);
    return status;
}

/* ---- operations --------------------------------------------------------------------------- */

static cc_status check_request(const cc_request *request, char *message) {
    const char *fault = cc__request_fault(request);
    if (fault) return say(message, CC_INVALID, fault);
    fault = cc__request_unsupported(request);
    return fault ? say(message, CC_UNSUPPORTED, fault) : CC_OK;
}

/* Posts a valid request under the lock. */
static cc_status post(cc_context *context, uint32_t group_id, const cc_request *request,
                      cc__pack *pack, cc_work **out, char *message) {
    cc__lock(context);
    cc_status status;
    cc__group *group = cc__context_group(context, group_id, false);
    if (context->closed)
        status = say(message, CC_CLOSED, "the communicator is closed");
    else if (cc__context_has_closed(context, group_id))
        status = say(message, CC_CLOSED, "the communicator is closed");
    else if (group == NULL)
        status = say(message, CC_INVALID, "this peer is no member of such a group");
    else
        status = cc__group_post(group, request, pack, cc__now(&context->clock), out, message);
    if (status == CC_OK) {
        (*out)->context = context;
        context->references++;
        context->more |= cc__group_pump(group);
        cc__context_collect(context);
        bool is_left = (request->flags & CC_ASYNC) && !atomic_load(&(*out)->complete);
        if (context->more || (is_left && !context->driving)) cc__progress_kick(context);
    }
    cc__unlock(context);
    return status;
}

/* Posts a request whose input is packed first. */
static cc_status post_packed(cc_context *context, uint32_t group, const cc_request *request,
                             const cc_part *parts, uint32_t n_parts, cc_work **out, char *message) {
    cc_request packed = *request;
    cc__pack pack;
    cc_status status = cc__pack_open(&pack, &packed, parts, n_parts);
    if (status != CC_OK) return say(message, status, "no memory to pack the input");
    status = post(context, group, &packed, &pack, out, message);
    cc__pack_close(&pack);
    return status;
}

cc_status cc_post(cc_context *context, uint32_t group_id, const cc_request *request, cc_work **out,
                  char *message) {
    char scratch[CC_MESSAGE_MAX];
    if (message == NULL) message = scratch;
    message[0] = 0;
    *out = NULL;
    cc_status status = check_request(request, message);
    if (status != CC_OK) return status;
    bool scaled = (cc__kind_traits(request->kind) & CC__HAS_OP) && request->op == CC_PREMUL_SUM;
    if (!scaled) return post(context, group_id, request, NULL, out, message);
    if (request->in == NULL && cc__request_total(request, false) > 0)
        return say(message, CC_INVALID, "the input buffer is missing");
    return post_packed(context, group_id, request, NULL, 0, out, message);
}

cc_status cc_post_many(cc_context *context, uint32_t group_id, const cc_request *request,
                       const cc_part *parts, uint32_t n_parts, cc_work **out, char *message) {
    char scratch[CC_MESSAGE_MAX];
    if (message == NULL) message = scratch;
    message[0] = 0;
    *out = NULL;
    cc_request whole = *request;
    whole.count = 0;
    for (uint32_t i = 0; i < n_parts; i++) whole.count += parts[i].count;
    const char *bad = cc__parts_fault(request, parts, n_parts);
    if (bad) return say(message, CC_INVALID, bad);
    cc_status status = check_request(&whole, message);
    if (status != CC_OK) return status;
    return post_packed(context, group_id, &whole, parts, n_parts, out, message);
}

cc_status cc_wait(cc_work *work, int64_t timeout_ms) {
    return cc__progress_wait(work->context, work, timeout_ms);
}

cc_status cc_run(cc_context *context, uint32_t group, const cc_request *request, int64_t timeout_ms,
                 cc_work **out, char *message) {
    cc_status status = cc_post(context, group, request, out, message);
    if (status != CC_OK) return status;
    status = cc_wait(*out, timeout_ms);
    if (status != CC_OK) return status;
    cc_work_free(*out);
    *out = NULL;
    return CC_OK;
}

cc_status cc_work_notify(cc_work *work, int fd) {
    cc_context *context = work->context;
    cc_status status = CC_OK;
    cc__lock(context);
    bool complete = atomic_load(&work->complete);
    if (!complete) {
        int *fds = realloc(work->notify_fds, (work->n_notify + 1) * sizeof *fds);
        if (fds) {
            fds[work->n_notify++] = fd;
            work->notify_fds = fds;
        } else {
            status = CC_NO_MEMORY;
        }
    }
    cc__unlock(context);
    uint64_t one = 1;
    if (complete && write(fd, &one, sizeof one) < 0) return CC_SYSTEM;
    return status;
}

void cc_work_forget(cc_work *work, int fd) {
    cc__lock(work->context);
    for (uint32_t i = 0; i < work->n_notify; i++)
        if (work->notify_fds[i] == fd) work->notify_fds[i--] = work->notify_fds[--work->n_notify];
    cc__unlock(work->context);
}

void cc_work_info(const cc_work *work, cc_info *out) {
    if (atomic_load(&((cc_work *)(uintptr_t)work)->complete)) {
        *out = work->info;
        return;
    }
    *out = (cc_info){.status = CC_PENDING, .sequence = work->sequence, .attempts = 1};
}

uint32_t cc_work_stragglers(const cc_work *work, cc_straggler *out, uint32_t room) {
    cc_context *context = work->context;
    uint32_t n = 0;
    cc__lock(context);
    const cc__group *group = cc__context_group(context, work->group, false);
    const cc__lane *lane = group ? group->lanes[work->request.lane] : NULL;
    if (lane && cc__lane_op(lane, work->sequence) == work)
        n = cc__stragglers(group, lane, out, room);
    cc__unlock(context);
    return n;
}

void cc_work_free(cc_work *work) {
    if (work == NULL) return;
    cc_context *context = work->context;
    cc__lock(context);
    cc__op_unref(work);
    cc__unlock(context);
    unref(context);
}

void cc_context_stats(cc_context *context, cc_stats *out) {
    *out = (cc_stats){0};
    cc__lock(context);
    if (!context->closed) context->transport->ops->stats(context->transport, out);
    out->operations = context->finished;
    out->epochs = context->epochs;
    cc__unlock(context);
}
