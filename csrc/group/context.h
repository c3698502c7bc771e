/* A context: one transport, its links and groups, and who may move them.
 *
 * context.c is what moves (step), progress.c who moves it: callers that wait and the progress
 * thread, one at a time, by a token. docs/protocol.md section 9. */
#ifndef CC_CONTEXT_H
#define CC_CONTEXT_H

#include "csrc/group/group.h"

#include <pthread.h>
#include <stdatomic.h>

struct cc_context {
    cc_transport *transport;
    cc__clock clock;
    cc_options options; /* its strings are not kept */

    pthread_mutex_t lock; /* guards everything below */
    atomic_int wanting;   /* callers that want the lock: a driver gives way to them */
    cc__links links;
    cc__group *groups[CC_GROUPS_MAX];
    uint32_t n_groups;
    bool more;          /* something stopped only for fairness */
    int64_t next_ns;    /* when a step is due at the latest */
    int64_t stepped_ns; /* when the last one was */
    int64_t trimmed_ns; /* when the pool of memory was looked at last */
    uint64_t finished;  /* operations, of all groups; what waiters look at */
    uint64_t retired;   /* of these, of groups that are closed */
    uint32_t closed_groups[CC_CLOSED_GROUPS_MAX]; /* the last ones; 0: none */
    uint32_t n_closed;
    uint64_t epochs;

    bool rehearsing, prepared_due; /* cc_prepare */
    cc_status prepared;
    int64_t gauged_ns; /* all links are up; by then it is known what they cost */
    cc_peer_id prepared_peer;
    int event_fd, event_write_fd;
    bool event_raised;

    /* progress.c */
    bool closed, closing, forked;
    bool driving;      /* the token is taken */
    bool token_wanted; /* by a caller, from the progress thread */
    uint32_t sleepers; /* callers that wait for `changed` */
    bool has_thread, thread_idle;
    pthread_t thread;
    pthread_cond_t changed;  /* an operation completed, or the token is free */
    pthread_cond_t work_due; /* the progress thread has something to do */
    uint32_t references;     /* the owner, and every work */
    cc_context *next;        /* all contexts of the process */
};

/* ---- context.c: under the lock ------------------------------------------------------------ */

/* Does what can be done now; returns whether anything happened. */
bool cc__context_step(cc_context *context);
cc__group *cc__context_group(cc_context *context, uint32_t id, bool create);
/* Passes on what groups have left: finished operations, reports, readiness. */
void cc__context_collect(cc_context *context);
void cc__context_drop_strangers(cc_context *context);
/* As cc_group_close. */
void cc__context_close_group(cc_context *context, uint32_t id);
bool cc__context_has_closed(const cc_context *context, uint32_t id);
/* As cc_prepare. */
cc_status cc__context_rehearse(cc_context *context, uint32_t serial, const cc_member *members,
                               uint32_t count);
bool cc__context_has_work(const cc_context *context);
cc_status cc__context_next_event(cc_context *context, cc_event *out);

/* ---- progress.c --------------------------------------------------------------------------- */

void cc__lock(cc_context *context);
void cc__unlock(cc_context *context);
cc_status cc__progress_start(cc_context *context);
void cc__progress_stop(cc_context *context); /* joins the thread; not under the lock */
/* Under the lock, when nobody else drives any more: says BYE on all links and drives until what is
 * queued has left, linger_ms at most. */
void cc__progress_goodbye(cc_context *context);
/* Under the lock: there is something to do, or to see, that whoever drives does not know of. */
void cc__progress_kick(cc_context *context);
/* Not under the lock. */
cc_status cc__progress_wait(cc_context *context, cc_work *work, int64_t timeout_ms);
/* Fork handlers know the context between these two. Not under the lock. */
void cc__progress_register(cc_context *context);
void cc__progress_unregister(cc_context *context);

#endif
