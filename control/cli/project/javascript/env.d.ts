// Written by Skerry at each build, of function.toml: the types of what a function's handlers get (docs/javascript.md).

interface Env {
  /** The node's database, as far as the manifest grants `sql`. */
  readonly db: D1Database;
  readonly config: {
    // CONFIG
  };
  readonly secrets: {
    // SECRETS
  };
}

interface Handlers {
  fetch?(request: Request, env: Env, ctx: Context): Response | Promise<Response>;
  /** A schedule's tick, and a release without `released`. */
  scheduled?(controller: ScheduledController, env: Env, ctx: Context): unknown;
  /** The release that begins to be served (`on_release`). */
  released?(controller: ScheduledController, env: Env, ctx: Context): unknown;
}

interface Context {
  /** The call ends when this has, too. */
  waitUntil(task: Promise<unknown>): void;
  passThroughOnException(): void;
  /** The manifest's route by which the call came; "" by the function's name. */
  readonly route: string;
  /** The parameters of the route's path, decoded. */
  readonly params: Record<string, string>;
  /** The client's address. */
  readonly client: string;
  /** The caller's name, where the node has callers; else "". */
  readonly user: string;
}

interface ScheduledController {
  /** The schedule's line; "" for a release. */
  readonly cron: string;
  /** When it was due, in milliseconds since 1970. */
  readonly scheduledTime: number;
  readonly type: "scheduled" | "release";
  noRetry(): void;
}

interface D1Database {
  prepare(query: string): D1PreparedStatement;
  batch<T = Record<string, unknown>>(statements: D1PreparedStatement[]): Promise<D1Result<T>[]>;
  exec(query: string): Promise<D1ExecResult>;
}

interface D1PreparedStatement {
  bind(...values: unknown[]): D1PreparedStatement;
  first<T = unknown>(column: string): Promise<T | null>;
  first<T = Record<string, unknown>>(): Promise<T | null>;
  run<T = Record<string, unknown>>(): Promise<D1Result<T>>;
  all<T = Record<string, unknown>>(): Promise<D1Result<T>>;
  raw<T = unknown[]>(options: { columnNames: true }): Promise<[string[], ...T[]]>;
  raw<T = unknown[]>(options?: { columnNames?: false }): Promise<T[]>;
}

interface D1Result<T = unknown> {
  success: true;
  results: T[];
  meta: {
    duration: number;
    changes: number;
    last_row_id: number;
    changed_db: boolean;
    rows_read: number;
    rows_written: number;
  };
}

interface D1ExecResult {
  count: number;
  duration: number;
}
