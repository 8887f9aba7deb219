/* The semaphores of libc. */

typedef union { char size[32]; long align; } sem_t;  /* of every 64-bit Linux */
int sem_init(sem_t *sem, int shared, unsigned int value);
int sem_post(sem_t *sem);
int sem_trywait(sem_t *sem);
