/* Preloaded into processes under test: system calls on chosen files fail, or take longer, as a table of rules says.

   The table is a file that the test maps too (failing_calls.py), named by SKERRY_FAILING_CALLS. It is mapped when a
   program starts, and inherited by its forks, so that a process behind a fence follows it as well.
   To have another call fail: add it to the functions at the end. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#define RULES 63
#define SHORT -1

struct rule {
    char call[16];
    char path[64];       /* what the file's path ends with, or contains where it ends with a slash; empty: any */
    int32_t error;       /* errno; 0: the call is made after all; SHORT: for half of the bytes */
    uint32_t delay_us;   /* before the call */
    uint64_t first;      /* which of the matching calls is the first that is concerned, counted from 0 */
    uint64_t times;      /* how many are */
    uint64_t seen;       /* matching calls so far */
    uint64_t concerned;  /* of them, those that failed or were late */
};

struct table {
    uint64_t rules;  /* how many there are; written last */
    char unused[120];
    struct rule rule[RULES];
};

_Static_assert(sizeof(struct rule) == 120, "failing_calls.py has the same layout");

static struct table *table;

/* Called again by a program that is forked from a template, which has no table (program_start.py). */
__attribute__((constructor)) void begin(void) {
    const char *path = getenv("SKERRY_FAILING_CALLS");
    if (path == NULL) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) table = mapped;
    close(fd);
}

static int matches(const char *path, size_t length, const char *rule) {
    size_t wanted = strnlen(rule, sizeof(((struct rule *)0)->path));
    if (wanted && rule[wanted - 1] == '/') return memmem(path, length, rule, wanted) != NULL;
    return length >= wanted && memcmp(path + length - wanted, rule, wanted) == 0;
}

/* The errno that a call on a path has to fail with; 0: make it. */
static int failing(const char *call, const char *path, size_t length) {
    int error = 0;
    uint64_t rules = __atomic_load_n(&table->rules, __ATOMIC_ACQUIRE);
    for (uint64_t at = 0; at < rules && at < RULES && !error; at++) {
        struct rule *rule = &table->rule[at];
        if (strncmp(rule->call, call, sizeof rule->call) != 0 || !matches(path, length, rule->path)) continue;
        uint64_t number = __atomic_fetch_add(&rule->seen, 1, __ATOMIC_ACQ_REL);
        if (number < rule->first || number - rule->first >= rule->times) continue;
        __atomic_fetch_add(&rule->concerned, 1, __ATOMIC_ACQ_REL);
        if (rule->delay_us) usleep(rule->delay_us);
        error = rule->error;
    }
    return error;
}

/* The same for a descriptor. */
static int failing_on(const char *call, int fd) {
    if (table == NULL || __atomic_load_n(&table->rules, __ATOMIC_ACQUIRE) == 0) return 0;
    int before = errno;
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    int error = failing(call, path, length < 0 ? 0 : (size_t)length);
    errno = before;
    return error;
}

/* The same for a path, which may be relative to the working folder. */
static int failing_at(const char *call, const char *path) {
    if (table == NULL || __atomic_load_n(&table->rules, __ATOMIC_ACQUIRE) == 0) return 0;
    int before = errno;
    int error = failing(call, path, strlen(path));
    errno = before;
    return error;
}

#define REAL(name, type, ...)                                      \
    static type (*real)(__VA_ARGS__);                              \
    if (real == NULL) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define FAILS(error)     \
    do {                 \
        int found = (error); \
        if (found) {     \
            errno = found; \
            return -1;   \
        }                \
    } while (0)

/* `size` may become less. */
#define MAY_BE_SHORT(call, fd)          \
    int error = failing_on(call, fd);   \
    if (error == SHORT) {               \
        if (size > 1) size /= 2;        \
    } else if (error) {                 \
        errno = error;                  \
        return -1;                      \
    }

int fsync(int fd) {
    REAL("fsync", int, int);
    FAILS(failing_on("fsync", fd));
    return real(fd);
}

int fdatasync(int fd) {
    REAL("fdatasync", int, int);
    FAILS(failing_on("fdatasync", fd));
    return real(fd);
}

int ftruncate(int fd, off_t size) {
    REAL("ftruncate", int, int, off_t);
    FAILS(failing_on("ftruncate", fd));
    return real(fd, size);
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

ssize_t write(int fd, const void *data, size_t size) {
    REAL("write", ssize_t, int, const void *, size_t);
    MAY_BE_SHORT("write", fd)
    return real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL("pwrite", ssize_t, int, const void *, size_t, off_t);
    MAY_BE_SHORT("pwrite", fd)
    return real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return pwrite(fd, data, size, at); }

ssize_t read(int fd, void *data, size_t size) {
    REAL("read", ssize_t, int, void *, size_t);
    MAY_BE_SHORT("read", fd)
    return real(fd, data, size);
}

ssize_t pread(int fd, void *data, size_t size, off_t at) {
    REAL("pread", ssize_t, int, void *, size_t, off_t);
    MAY_BE_SHORT("read", fd)
    return real(fd, data, size, at);
}

ssize_t pread64(int fd, void *data, size_t size, off64_t at) { return pread(fd, data, size, at); }

#define MODE(flags)                            \
    mode_t mode = 0;                           \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {   \
        va_list more;                          \
        va_start(more, flags);                 \
        mode = (mode_t)va_arg(more, int);      \
        va_end(more);                          \
    }

int open(const char *path, int flags, ...) {
    REAL("open", int, const char *, int, ...);
    MODE(flags)
    FAILS(failing_at("open", path));
    return real(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    REAL("open64", int, const char *, int, ...);
    MODE(flags)
    FAILS(failing_at("open", path));
    return real(path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    REAL("openat", int, int, const char *, int, ...);
    MODE(flags)
    FAILS(failing_at("open", path));
    return real(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL("openat64", int, int, const char *, int, ...);
    MODE(flags)
    FAILS(failing_at("open", path));
    return real(folder, path, flags, mode);
}

int rename(const char *old, const char *new) {
    REAL("rename", int, const char *, const char *);
    FAILS(failing_at("rename", new));
    return real(old, new);
}

int renameat(int from, const char *old, int to, const char *new) {
    REAL("renameat", int, int, const char *, int, const char *);
    FAILS(failing_at("rename", new));
    return real(from, old, to, new);
}

static void *map(void *(*real)(void *, size_t, int, int, int, off64_t), void *at, size_t size, int protection, int flags, int fd,
                 off64_t from) {
    int error = fd < 0 ? 0 : failing_on("mmap", fd);
    if (error) {
        errno = error;
        return MAP_FAILED;
    }
    return real(at, size, protection, flags, fd, from);
}

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t from) {
    REAL("mmap", void *, void *, size_t, int, int, int, off64_t);
    return map(real, at, size, protection, flags, fd, from);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off64_t from) {
    return mmap(at, size, protection, flags, fd, from);
}

/* These have no path. */

pid_t fork(void) {
    REAL("fork", pid_t, void);
    FAILS(failing_at("fork", ""));
    return real();
}

int socket(int domain, int type, int protocol) {
    REAL("socket", int, int, int, int);
    FAILS(failing_at("socket", ""));
    return real(domain, type, protocol);
}

int socketpair(int domain, int type, int protocol, int made[2]) {
    REAL("socketpair", int, int, int, int, int[2]);
    FAILS(failing_at("socket", ""));
    return real(domain, type, protocol, made);
}

int accept(int fd, struct sockaddr *restrict address, socklen_t *restrict size) {
    REAL("accept", int, int, struct sockaddr *restrict, socklen_t *restrict);
    FAILS(failing_at("accept", ""));
    return real(fd, address, size);
}

int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags) {
    REAL("accept4", int, int, struct sockaddr *restrict, socklen_t *restrict, int);
    FAILS(failing_at("accept", ""));
    return real(fd, address, size, flags);
}
