/* The public entry points: arguments are checked here, before anything is locked or sent. */
#include "csrc/context.h"
#include "csrc/kernels/kernels.h"

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
    const cc_timeouts *t = &options->timeouts;
    if (t->beat_ms < 1 || t->dead_ms <= t->beat_ms || t->connect_ms < 1)
        return "timeouts must be positive, and dead longer than beat";
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
    context->next_ns = cc__now(&context->clock);
    cc__links_start(&context->links, context->transport, options);
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
    if (!context->closed) {
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

cc_status cc_prepare(cc_context *context, const cc_member *members, uint32_t count) {
    cc__lock(context);
    cc_status status = context->closed ? CC_CLOSED : CC_OK;
    if (status == CC_OK) {
        context->rehearsing = true;
        context->prepared = CC_PENDING;
        context->prepared_due = false;
        context->prepared_peer = (cc_peer_id){0};
        bool all_up = true;
        for (uint32_t i = 0; i < count && status == CC_OK; i++) {
            cc__link *link = cc__links_want(&context->links, &members[i], UINT32_MAX);
            if (link == NULL) status = CC_NO_MEMORY;
            all_up &= link && link->state == CC__LINK_UP;
        }
        if (all_up && status == CC_OK) {
            context->prepared = CC_OK;
            context->prepared_due = true;
            cc__context_collect(context);
        }
        context->more = true;
        cc__progress_kick(context);
    }
    cc__unlock(context);
    return status;
}

void cc_set_pending(cc_context *context, uint32_t group_id, uint32_t joiners) {
    cc__lock(context);
    cc__group *group = cc__context_group(context, group_id, false);
    if (group) group->joiners = joiners;
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

cc_status cc_next_event(cc_context *context, cc_event *out) {
    cc__lock(context);
    cc_status status = context->closed ? CC_CLOSED : cc__context_next_event(context, out);
    cc__unlock(context);
    return status;
}

/* ---- operations --------------------------------------------------------------------------- */

static const char *bad_request(const cc_request *request) {
    if (request->lane >= CC_LANES_MAX) return "lane must be below 16";
    if (request->kind == CC_BOUNDARY && request->lane != 0) return "admit and leave are of lane 0";
    if (request->kind == CC_BARRIER || request->kind == CC_BOUNDARY) return NULL;
    if (request->kind < CC_ALL_REDUCE || request->kind > CC_BOUNDARY) return "no such operation";
    size_t element = cc_dtype_bytes(request->dtype);
    if (element == 0) return "no such dtype";
    if (request->count > (UINT64_MAX >> 16) / element) return "count is too large";
    if (request->count > 0 && (request->out == NULL || request->in == NULL))
        return "a buffer is missing";
    return NULL;
}

static const char *unsupported(const cc_request *request) {
    if (request->kind == CC_ALL_REDUCE && !cc__reduce_supports(request->dtype, request->op))
        return "this reduction is not defined for this dtype";
    if (request->algorithm != CC_AUTO && !cc__plan_supports(request->kind, request->algorithm))
        return "this algorithm cannot do this operation";
    return NULL;
}

static bool overlap(const cc_request *request, uint32_t world, uint32_t rank) {
    uint64_t bytes = request->count * cc_dtype_bytes(request->dtype);
    uint64_t out_bytes = request->kind == CC_ALL_GATHER ? bytes * world : bytes;
    uintptr_t in = (uintptr_t)request->in, out = (uintptr_t)request->out;
    if (bytes == 0 || in + bytes <= out || out + out_bytes <= in) return false;
    return in != (request->kind == CC_ALL_GATHER ? out + rank * bytes : out);
}

cc_status cc_post(cc_context *context, uint32_t group_id, const cc_request *request, cc_work **out,
                  char *message) {
    char scratch[CC_MESSAGE_MAX];
    if (message == NULL) message = scratch;
    message[0] = 0;
    *out = NULL;
    const char *bad = bad_request(request);
    if (bad) return say(message, CC_INVALID, bad);
    bad = unsupported(request);
    if (bad) return say(message, CC_UNSUPPORTED, bad);
    cc__lock(context);
    cc_status status;
    cc__group *group = cc__context_group(context, group_id, false);
    if (context->closed) {
        status = say(message, CC_CLOSED, "the communicator is closed");
    } else if (group == NULL) {
        status = say(message, CC_INVALID, "this peer is no member of such a group");
    } else if (group->size > 0 && overlap(request, group->world, group->ranks[group->me])) {
        status = say(message, CC_INVALID, "input and output overlap; only out=input is allowed");
    } else {
        int64_t now = cc__now(&context->clock);
        status = cc__group_post(group, request, now, out, message);
    }
    if (status == CC_OK) {
        (*out)->context = context;
        context->references++;
        context->more |= cc__group_pump(group);
        cc__context_collect(context);
        bool nobody_drives = (request->flags & CC_ASYNC) && !context->driving;
        if (context->more || nobody_drives) cc__progress_kick(context);
    }
    cc__unlock(context);
    return status;
}

cc_status cc_wait(cc_work *work, int64_t timeout_ms) {
    return cc__progress_wait(work->context, work, timeout_ms);
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
