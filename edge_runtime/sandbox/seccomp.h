/* The functions of libseccomp that this project calls; source: seccomp.h of libseccomp 2.5. */

struct scmp_arg_cmp { unsigned int arg; int op; uint64_t datum_a; uint64_t datum_b; };
void *seccomp_init(uint32_t);
int seccomp_attr_set(void *, int, uint32_t);
int seccomp_rule_add_array(void *, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int seccomp_syscall_resolve_name(const char *);
int seccomp_load(void *);
unsigned int seccomp_api_get(void);
