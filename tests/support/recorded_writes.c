/* Records in their order what the processes of a program write below a folder, for `tests.support.power`.
 *
 * Loaded by LD_PRELOAD. SKERRY_RECORD_FOLDER: the folder. SKERRY_RECORD_LOG: the file that the records are appended
 * to; "LOG.lock" beside it holds a mutex that all processes share, so that the order of the records is the order of
 * the operations. Nothing is synced for real: the record says what was asked for.
 *
 * A record is: u32 length of what follows, u8 kind, u64 inode, u64 number (offset or size), u32 length of the first
 * path, the first path, and data (a write's bytes, or a rename's second path). All little-endian. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 65536

static char folder[PATH_MAX];
static size_t folder_length;
static int log_fd = -1;
static pthread_mutex_t *mutex;
static uint64_t tracked[FILES]; /* the inode of each descriptor that is open below the folder, 0 for others */
static char *room; /* where a record is put together */
static size_t room_size;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

static void lock(void) {
  if (pthread_mutex_lock(mutex) == EOWNERDEAD) pthread_mutex_consistent(mutex);
}

static void unlock(void) { pthread_mutex_unlock(mutex); }

/* Called again by a program that is forked from a template, which has neither variable (program_start.py). */
__attribute__((constructor)) void begin(void) {
  const char *wanted = getenv("SKERRY_RECORD_FOLDER"), *path = getenv("SKERRY_RECORD_LOG");
  char lock_path[PATH_MAX];
  if (!wanted || !path) return;
  snprintf(folder, sizeof folder, "%s", wanted);
  snprintf(lock_path, sizeof lock_path, "%s.lock", path);
  int made = REAL(open)(lock_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  int shared = made >= 0 ? made : REAL(open)(lock_path, O_RDWR | O_CLOEXEC);
  if (shared < 0 || REAL(ftruncate)(shared, 4096)) abort();
  mutex = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, shared, 0);
  if (mutex == MAP_FAILED) abort();
  if (made >= 0) { /* the first process is alone */
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(mutex, &attributes);
  }
  REAL(close)(shared);
  int opened = REAL(open)(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  /* High, where the program's own descriptors don't come. */
  log_fd = fcntl(opened, F_DUPFD_CLOEXEC, 900);
  if (log_fd < 0) abort();
  REAL(close)(opened);
  folder_length = strlen(folder);
}

static int below(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

static const char *absolute(int at, const char *path, char *made) {
  char link[64], base[PATH_MAX];
  if (path[0] == '/') return path;
  if (at == AT_FDCWD) {
    if (!getcwd(base, sizeof base)) return path;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t size = readlink(link, base, sizeof base - 1);
    if (size < 0) return path;
    base[size] = 0;
  }
  snprintf(made, PATH_MAX, "%s/%s", base, path);
  return made;
}

static void record(char kind, uint64_t inode, uint64_t number, const char *path, const void *data, size_t size) {
  uint32_t path_length = path ? (uint32_t)strlen(path) : 0;
  uint32_t length = (uint32_t)(1 + 8 + 8 + 4 + path_length + size);
  char head[25];
  memcpy(head, &length, 4);
  head[4] = kind;
  memcpy(head + 5, &inode, 8);
  memcpy(head + 13, &number, 8);
  memcpy(head + 21, &path_length, 4);
  size_t whole = 25 + path_length + size;
  if (whole > room_size) { /* one write, so that what others append can't come between */
    room = realloc(room, whole);
    if (!room) abort();
    room_size = whole;
  }
  memcpy(room, head, 25);
  if (path_length) memcpy(room + 25, path, path_length);
  if (size) memcpy(room + 25 + path_length, data, size);
  if (REAL(write)(log_fd, room, whole) != (ssize_t)whole) abort();
}

static uint64_t inode_of(int fd) {
  struct stat found;
  return fstat(fd, &found) ? 0 : (uint64_t)found.st_ino;
}

static int opened(const char *name, int at, const char *path, int flags, mode_t mode) {
  char made[PATH_MAX];
  int (*openat_)(int, const char *, int, ...) = (int (*)(int, const char *, int, ...))real(name);
  const char *whole = absolute(at, path, made);
  if (log_fd < 0 || !below(whole)) {
    int fd = openat_(at, path, flags, mode);
    if (fd >= 0 && fd < FILES) tracked[fd] = 0;
    return fd;
  }
  struct stat before;
  lock();
  int there = !stat(whole, &before);
  int fd = openat_(at, path, flags, mode);
  int saved = errno;
  if (fd >= 0 && fd < FILES) {
    tracked[fd] = inode_of(fd);
    if (!there && flags & O_CREAT)
      record('C', tracked[fd], 0, whole, NULL, 0);
    else if (flags & O_TRUNC && flags & (O_WRONLY | O_RDWR))
      record('T', tracked[fd], 0, NULL, NULL, 0);
  }
  unlock();
  errno = saved;
  return fd;
}

#define MODE(flags, last)                                    \
  mode_t mode = 0;                                           \
  if ((flags) & (O_CREAT | __O_TMPFILE)) {                   \
    va_list more;                                            \
    va_start(more, last);                                    \
    mode = (mode_t)va_arg(more, int);                        \
    va_end(more);                                            \
  }

int open(const char *path, int flags, ...) { MODE(flags, flags) return opened("openat", AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags, flags) return opened("openat64", AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags, flags) return opened("openat", at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags, flags) return opened("openat64", at, path, flags, mode); }

int close(int fd) {
  if (fd == log_fd && fd >= 0) return 0;
  if (fd >= 0 && fd < FILES) tracked[fd] = 0;
  return REAL(close)(fd);
}

static int watched(int fd) { return log_fd >= 0 && fd >= 0 && fd < FILES && tracked[fd]; }

static ssize_t written(int fd, const void *data, ssize_t done, off_t offset) {
  int saved = errno;
  if (done > 0) record('W', tracked[fd], (uint64_t)offset, NULL, data, (size_t)done);
  errno = saved;
  return done;
}

ssize_t write(int fd, const void *data, size_t size) {
  if (!watched(fd)) return REAL(write)(fd, data, size);
  lock();
  ssize_t done = REAL(write)(fd, data, size);
  done = written(fd, data, done, done > 0 ? lseek(fd, 0, SEEK_CUR) - done : 0);
  unlock();
  return done;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  if (!watched(fd)) return REAL(writev)(fd, parts, count);
  /* A short count is allowed, and the caller goes on. */
  return count ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
  if (!watched(fd)) return REAL(pwrite)(fd, data, size, offset);
  lock();
  ssize_t done = written(fd, data, REAL(pwrite)(fd, data, size, offset), offset);
  unlock();
  return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

int ftruncate(int fd, off_t size) {
  if (!watched(fd)) return REAL(ftruncate)(fd, size);
  lock();
  int result = REAL(ftruncate)(fd, size);
  if (!result) record('T', tracked[fd], (uint64_t)size, NULL, NULL, 0);
  unlock();
  return result;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static int synced(int fd, int (*sync)(int)) {
  if (!watched(fd)) return sync(fd);
  lock();
  record('S', tracked[fd], 0, NULL, NULL, 0);
  unlock();
  return 0;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

int renameat(int from_at, const char *from, int to_at, const char *to) {
  char from_room[PATH_MAX], to_room[PATH_MAX];
  const char *old = absolute(from_at, from, from_room), *new = absolute(to_at, to, to_room);
  if (log_fd < 0 || !below(new)) return REAL(renameat)(from_at, from, to_at, to);
  struct stat found;
  lock();
  uint64_t inode = lstat(old, &found) ? 0 : (uint64_t)found.st_ino;
  int result = REAL(renameat)(from_at, from, to_at, to);
  int saved = errno;
  if (!result) record('R', inode, 0, old, new, strlen(new));
  unlock();
  errno = saved;
  return result;
}

int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
  char from_room[PATH_MAX], to_room[PATH_MAX];
  const char *old = absolute(from_at, from, from_room), *new = absolute(to_at, to, to_room);
  if (log_fd < 0 || !below(new)) return REAL(renameat2)(from_at, from, to_at, to, flags);
  if (flags != RENAME_EXCHANGE) abort();
  lock();
  int result = REAL(renameat2)(from_at, from, to_at, to, flags);
  int saved = errno;
  if (!result) record('X', 0, 0, old, new, strlen(new));
  unlock();
  errno = saved;
  return result;
}

int unlinkat(int at, const char *path, int flags) {
  char made[PATH_MAX];
  const char *whole = absolute(at, path, made);
  if (log_fd < 0 || !below(whole)) return REAL(unlinkat)(at, path, flags);
  lock();
  int result = REAL(unlinkat)(at, path, flags);
  int saved = errno;
  if (!result) record('U', 0, 0, whole, NULL, 0);
  unlock();
  errno = saved;
  return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int at, const char *path, mode_t mode) {
  char made[PATH_MAX];
  const char *whole = absolute(at, path, made);
  if (log_fd < 0 || !below(whole)) return REAL(mkdirat)(at, path, mode);
  struct stat found;
  lock();
  int result = REAL(mkdirat)(at, path, mode);
  int saved = errno;
  if (!result) record('D', stat(whole, &found) ? 0 : (uint64_t)found.st_ino, 0, whole, NULL, 0);
  unlock();
  errno = saved;
  return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

/* Writes that aren't recorded would make a lie of the record. */
static int unknown(int fd) {
  if (watched(fd)) abort();
  return 0;
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset) {
  unknown(fd);
  return REAL(pwritev)(fd, parts, count, offset);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
  ssize_t (*sendfile_)(int, int, off_t *, size_t) = (ssize_t (*)(int, int, off_t *, size_t))real("sendfile");
  unknown(to);
  return sendfile_(to, from, offset, size);
}

ssize_t copy_file_range(int from, off64_t *from_at, int to, off64_t *to_at, size_t size, unsigned flags) {
  unknown(to);
  return REAL(copy_file_range)(from, from_at, to, to_at, size, flags);
}

int posix_fallocate(int fd, off_t offset, off_t size) {
  unknown(fd);
  return REAL(posix_fallocate)(fd, offset, size);
}
