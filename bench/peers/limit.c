/* The limit of the paced load: what a program can do at best that starts a command for each WebSocket, puts each line
 * of its stdout into a text frame, and writes what one read gave in one write.  No back-pressure, no close handshake,
 * no checks: it is a yardstick, and serves nobody but bench.peers.receiver, whose key it knows.
 *
 *     limit PORT_FILE COMMAND [ARGUMENT...]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { LINES = 1 << 16, HEAD = 10, EVENTS = 64 };

struct session { int socket, in, out; pid_t pid; size_t have; unsigned char rest[LINES]; };
struct end { struct session *session; int is_pipe; };

static const char ANSWER[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"; /* RFC 6455, 1.3 */
extern char **environ;
static int poll_fd;
static char **command;

static void watch(int fd, struct session *session, int is_pipe) {
    struct end *end = malloc(sizeof *end);
    *end = (struct end){session, is_pipe};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = end};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &event)) _exit(1);
}

static int put(int fd, const void *data, size_t size) {
    for (const char *at = data; size;) {
        ssize_t done = write(fd, at, size);
        if (done <= 0) return -1;
        at += done, size -= done;
    }
    return 0;
}

/* Closed descriptors leave epoll; the few bytes of a session are not given back. */
static void stop(struct session *session) {
    if (session->socket < 0) return;
    close(session->socket), session->socket = -1;
    if (session->pid) close(session->in), close(session->out), kill(session->pid, SIGTERM);
}

static int start(struct session *session) {
    int in[2], out[2];
    posix_spawn_file_actions_t actions;
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC)) return -1;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    int failed = posix_spawnp(&session->pid, command[0], &actions, NULL, command, environ);
    close(in[0]), close(out[1]);
    session->in = in[1], session->out = out[0];
    if (failed || put(session->socket, ANSWER, sizeof ANSWER - 1)) return -1;
    watch(session->out, session, 1);
    return 0;
}

static int from_client(struct session *session) {
    static unsigned char data[LINES];
    ssize_t size = read(session->socket, data, sizeof data - 1);
    if (size <= 0) return -1;
    if (!session->pid) return memmem(data, size, "\r\n\r\n", 4) ? start(session) : -1;
    for (unsigned char *at = data; at + 6 <= data + size;) { /* small messages, whole in one read */
        size_t length = at[1] & 0x7f, header = 2;
        if (length == 126) length = at[2] << 8 | at[3], header = 4;
        unsigned char *mask = at + header, *payload = mask + 4;
        if ((at[0] & 0x0f) == 8 || payload + length > data + size) return -1;
        for (size_t i = 0; i < length; i++) payload[i] ^= mask[i & 3];
        unsigned char kept = payload[length]; /* the next frame's first byte, if there is one */
        payload[length] = '\n';
        if ((at[0] & 0x0f) == 1 && put(session->in, payload, length + 1)) return -1;
        payload[length] = kept;
        at = payload + length;
    }
    return 0;
}

static int from_command(struct session *session) {
    static unsigned char frames[LINES * (HEAD + 1)];
    ssize_t size = read(session->out, session->rest + session->have, LINES - session->have);
    if (size <= 0) return -1;
    unsigned char *at = session->rest, *end = at + session->have + size, *to = frames, *line_end;
    for (; (line_end = memchr(at, '\n', end - at)); at = line_end + 1) {
        size_t length = line_end - at;
        *to++ = 0x81;
        if (length < 126) *to++ = length;
        else *to++ = 126, *to++ = length >> 8, *to++ = length & 0xff; /* never more than LINES - 1 */
        to = mempcpy(to, at, length);
    }
    session->have = end - at;
    memmove(session->rest, at, session->have);
    return session->have == LINES ? -1 : put(session->socket, frames, to - frames);
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    command = arguments + 2;
    struct sigaction quiet = {.sa_handler = SIG_DFL, .sa_flags = SA_NOCLDWAIT}; /* nobody asks how they ended */
    sigaction(SIGCHLD, &quiet, NULL), signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), yes = 1;
    if (bind(listener, (void *)&address, length) || listen(listener, 1024)) return 1;
    getsockname(listener, (void *)&address, &length);
    char part[4096];
    snprintf(part, sizeof part, "%s.part", arguments[1]);
    FILE *file = fopen(part, "w");
    if (!file || fprintf(file, "%d", ntohs(address.sin_port)) < 0 || fclose(file) || rename(part, arguments[1])) return 1;
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(listener, NULL, 0);
    for (struct epoll_event events[EVENTS];;) {
        int ready = epoll_wait(poll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct end *end = events[i].data.ptr;
            if (end->session) {
                if (end->session->socket >= 0 && (end->is_pipe ? from_command : from_client)(end->session))
                    stop(end->session);
                continue;
            }
            struct session *session = calloc(1, sizeof *session);
            session->socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (session->socket < 0) return 1;
            setsockopt(session->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
            watch(session->socket, session, 0);
        }
    }
}
