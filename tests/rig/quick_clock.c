/* A processor's clock that runs fast: whoever measures with it how long something takes believes to be very slow.
 *
 * qemu-img times the derivation of keys for LUKS, for 1.3 s of a processor, and chooses as many rounds as take the time
 * that was asked for; with this clock it measures once, chooses the fewest, and opening them is quick as well.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/resource.h>

int getrusage(__rusage_who_t who, struct rusage *usage)
{
    static int calls;
    int (*real)(__rusage_who_t, struct rusage *) = (int (*)(__rusage_who_t, struct rusage *))dlsym(RTLD_NEXT, "getrusage");
    int status = real(who, usage);
    usage->ru_utime.tv_sec += 100 * __sync_add_and_fetch(&calls, 1);
    return status;
}
