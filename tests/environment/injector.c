/* Errors and delays by path and call, for one process and those that it starts: loaded with LD_PRELOAD.
 *
 * A call on a path that begins with one of the prefixes, or on a descriptor of such a file, is counted when its kind is
 * asked for. The counter is shared by all processes of a run. Calls AT to AT + TIMES - 1 sleep, then fail with ERRNO if
 * it can be theirs, or go on. Every counted call is a line of the trace. See injector.py for the environment.
 *
 * Only what goes through libc's symbols is met: Python, SQLite, Rust's standard library (obstore), qemu-img, qemu-nbd. What
 * libc calls itself (fopen, opendir's own open) is not, nor what reads mapped memory.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const char *prefixes, *kinds;
static int fault_errno, trace_descriptor = -1;
static long delay_ms, first, times;
static _Atomic long *counter;
static _Thread_local int inside;

/* Also called by a process that was forked with the library in it, when its environment says what shall happen. */
__attribute__((constructor)) void vmkeep_fault_start(void)
{
    const char *value, *path = getenv("VMKEEP_FAULT_RECORD");
    prefixes = getenv("VMKEEP_FAULT_PREFIXES");
    kinds = getenv("VMKEEP_FAULT_KINDS");
    if (!path || !prefixes || !kinds)
        return;
    fault_errno = (value = getenv("VMKEEP_FAULT_ERRNO")) ? atoi(value) : 0;
    delay_ms = (value = getenv("VMKEEP_FAULT_DELAY_MS")) ? atol(value) : 0;
    first = (value = getenv("VMKEEP_FAULT_AT")) ? atol(value) : 0;
    times = (value = getenv("VMKEEP_FAULT_TIMES")) ? atol(value) : 1;
    /* Its own descriptors are out of the way of whoever closes or counts low ones. */
    char name[PATH_MAX];
    snprintf(name, sizeof name, "%s.counter", path);
    int descriptor = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0 || syscall(SYS_ftruncate, descriptor, sizeof(long)) < 0)
        return;
    void *memory = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    syscall(SYS_close, descriptor);
    if (memory == MAP_FAILED)
        return;
    descriptor = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor < 0)
        return;
    trace_descriptor = syscall(SYS_fcntl, descriptor, F_DUPFD_CLOEXEC, 900);
    if (trace_descriptor < 0)
        trace_descriptor = descriptor;
    else
        syscall(SYS_close, descriptor);
    counter = memory;
}

static int listed(const char *list, char separator, const char *text, int as_prefix)
{
    size_t length = strlen(text);
    while (list && *list) {
        const char *end = strchr(list, separator);
        size_t size = end ? (size_t)(end - list) : strlen(list);
        if (size && size <= length && !strncmp(list, text, size) && (as_prefix || size == length))
            return 1;
        list = end ? end + 1 : NULL;
    }
    return 0;
}

/* Return whether a call of this kind can fail so: nothing is read into a full file system. */
static int fits(const char *kind)
{
    if (fault_errno == ENOSPC || fault_errno == EDQUOT)
        return listed("create,write,sync,rename,link,mkdir", ',', kind, 0);
    if (fault_errno == EROFS)
        return listed("create,rename,link,unlink,mkdir", ',', kind, 0);
    if (fault_errno == EMFILE || fault_errno == ENFILE)
        return listed("open,create", ',', kind, 0);
    return 1;
}

/* Return whether the call fails; errno is set then. */
static int fails(const char *kind, int directory, const char *path)
{
    char whole[PATH_MAX], link[64];
    if (!counter || inside || !listed(kinds, ',', kind, 0))
        return 0;
    inside = 1;
    int before = errno, failed = 0;
    if (!path || (path[0] != '/' && path[0] != 0 && directory != AT_FDCWD) || path[0] == 0) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, whole, sizeof whole - 1);
        if (length < 0)
            length = 0;
        whole[length] = 0;
        if (path && path[0])
            snprintf(whole + length, sizeof whole - length, "/%s", path);
        path = whole;
    } else if (path[0] != '/') {
        size_t length = 0;
        if (syscall(SYS_getcwd, whole, sizeof whole) > 0)
            length = strlen(whole);
        snprintf(whole + length, sizeof whole - length, "/%s", path);
        path = whole;
    }
    if (listed(prefixes, ':', path, 1)) {
        long number = atomic_fetch_add(counter, 1) + 1;
        int meant = first > 0 && number >= first && (times < 0 || number < first + times);
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %d %s %s\n", number, meant ? "hit" : "met", getpid(), kind, path);
        syscall(SYS_write, trace_descriptor, line, length);
        if (meant && delay_ms) {
            struct timespec pause = {delay_ms / 1000, delay_ms % 1000 * 1000000};
            syscall(SYS_nanosleep, &pause, NULL);
        }
        failed = meant && fault_errno && fits(kind);
    }
    errno = failed ? fault_errno : before;
    inside = 0;
    return failed;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPENING(name) \
    int name(const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (fails(flags & (O_CREAT | __O_TMPFILE) ? "create" : "open", AT_FDCWD, path)) \
            return -1; \
        return real(path, flags, mode); \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name) \
    int name(int directory, const char *path, int flags, ...) \
    { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        if (fails(flags & (O_CREAT | __O_TMPFILE) ? "create" : "open", directory, path)) \
            return -1; \
        return real(directory, path, flags, mode); \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

/* result name(kind, place of the path, parameters, arguments) */
#define CALL(result, name, kind, directory, path, failure, parameters, arguments) \
    result name parameters \
    { \
        REAL(name); \
        if (fails(kind, directory, path)) \
            return failure; \
        return real arguments; \
    }

CALL(DIR *, opendir, "open", AT_FDCWD, path, NULL, (const char *path), (path))
CALL(ssize_t, read, "read", d, NULL, -1, (int d, void *b, size_t n), (d, b, n))
CALL(ssize_t, pread, "read", d, NULL, -1, (int d, void *b, size_t n, off_t o), (d, b, n, o))
CALL(ssize_t, pread64, "read", d, NULL, -1, (int d, void *b, size_t n, off64_t o), (d, b, n, o))
CALL(ssize_t, readv, "read", d, NULL, -1, (int d, const struct iovec *v, int n), (d, v, n))
CALL(ssize_t, preadv, "read", d, NULL, -1, (int d, const struct iovec *v, int n, off_t o), (d, v, n, o))
CALL(ssize_t, preadv64, "read", d, NULL, -1, (int d, const struct iovec *v, int n, off64_t o), (d, v, n, o))
CALL(ssize_t, sendfile, "read", in, NULL, -1, (int out, int in, off_t *o, size_t n), (out, in, o, n))
CALL(ssize_t, sendfile64, "read", in, NULL, -1, (int out, int in, off64_t *o, size_t n), (out, in, o, n))
CALL(ssize_t, write, "write", d, NULL, -1, (int d, const void *b, size_t n), (d, b, n))
CALL(ssize_t, pwrite, "write", d, NULL, -1, (int d, const void *b, size_t n, off_t o), (d, b, n, o))
CALL(ssize_t, pwrite64, "write", d, NULL, -1, (int d, const void *b, size_t n, off64_t o), (d, b, n, o))
CALL(ssize_t, writev, "write", d, NULL, -1, (int d, const struct iovec *v, int n), (d, v, n))
CALL(ssize_t, pwritev, "write", d, NULL, -1, (int d, const struct iovec *v, int n, off_t o), (d, v, n, o))
CALL(ssize_t, pwritev64, "write", d, NULL, -1, (int d, const struct iovec *v, int n, off64_t o), (d, v, n, o))
CALL(int, ftruncate, "write", d, NULL, -1, (int d, off_t n), (d, n))
CALL(int, ftruncate64, "write", d, NULL, -1, (int d, off64_t n), (d, n))
CALL(int, fallocate, "write", d, NULL, -1, (int d, int m, off_t o, off_t n), (d, m, o, n))
CALL(int, fallocate64, "write", d, NULL, -1, (int d, int m, off64_t o, off64_t n), (d, m, o, n))
CALL(int, posix_fallocate, "write", d, NULL, errno, (int d, off_t o, off_t n), (d, o, n))
CALL(int, posix_fallocate64, "write", d, NULL, errno, (int d, off64_t o, off64_t n), (d, o, n))
CALL(int, fsync, "sync", d, NULL, -1, (int d), (d))
CALL(int, fdatasync, "sync", d, NULL, -1, (int d), (d))
CALL(int, rename, "rename", AT_FDCWD, to, -1, (const char *from, const char *to), (from, to))
CALL(int, renameat, "rename", t, to, -1, (int f, const char *from, int t, const char *to), (f, from, t, to))
CALL(int, renameat2, "rename", t, to, -1, (int f, const char *from, int t, const char *to, unsigned g), (f, from, t, to, g))
CALL(int, link, "link", AT_FDCWD, to, -1, (const char *from, const char *to), (from, to))
CALL(int, linkat, "link", t, to, -1, (int f, const char *from, int t, const char *to, int g), (f, from, t, to, g))
CALL(int, unlink, "unlink", AT_FDCWD, path, -1, (const char *path), (path))
CALL(int, unlinkat, "unlink", d, path, -1, (int d, const char *path, int g), (d, path, g))
CALL(int, rmdir, "unlink", AT_FDCWD, path, -1, (const char *path), (path))
CALL(int, mkdir, "mkdir", AT_FDCWD, path, -1, (const char *path, mode_t m), (path, m))
CALL(int, mkdirat, "mkdir", d, path, -1, (int d, const char *path, mode_t m), (d, path, m))
CALL(int, chmod, "chmod", AT_FDCWD, path, -1, (const char *path, mode_t m), (path, m))
CALL(int, fchmod, "chmod", d, NULL, -1, (int d, mode_t m), (d, m))
CALL(int, chown, "chmod", AT_FDCWD, path, -1, (const char *path, uid_t u, gid_t g), (path, u, g))
CALL(int, flock, "lock", d, NULL, -1, (int d, int o), (d, o))
CALL(int, statvfs, "statvfs", AT_FDCWD, path, -1, (const char *path, struct statvfs *b), (path, b))
CALL(int, statvfs64, "statvfs", AT_FDCWD, path, -1, (const char *path, struct statvfs64 *b), (path, b))
CALL(int, fstatvfs, "statvfs", d, NULL, -1, (int d, struct statvfs *b), (d, b))
CALL(int, fstatvfs64, "statvfs", d, NULL, -1, (int d, struct statvfs64 *b), (d, b))
CALL(int, stat, "stat", AT_FDCWD, path, -1, (const char *path, struct stat *b), (path, b))
CALL(int, stat64, "stat", AT_FDCWD, path, -1, (const char *path, struct stat64 *b), (path, b))
CALL(int, lstat, "stat", AT_FDCWD, path, -1, (const char *path, struct stat *b), (path, b))
CALL(int, lstat64, "stat", AT_FDCWD, path, -1, (const char *path, struct stat64 *b), (path, b))
CALL(int, fstatat, "stat", d, path, -1, (int d, const char *path, struct stat *b, int g), (d, path, b, g))
CALL(int, fstatat64, "stat", d, path, -1, (int d, const char *path, struct stat64 *b, int g), (d, path, b, g))
CALL(int, statx, "stat", d, path, -1, (int d, const char *path, int g, unsigned m, struct statx *b), (d, path, g, m, b))
