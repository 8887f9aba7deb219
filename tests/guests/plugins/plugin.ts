// An Extism plug-in by the official PDK for AssemblyScript, as it comes from npm.
import { Config, Host, LogLevel, Memory, Var } from "@extism/as-pdk";
import { error_set } from "@extism/as-pdk/lib/env";

export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  unreachable();
}

// Top-level code runs in the start section, before any function.
let begun = 0;
begun = Host.inputString().length + 7;

export function echo(): i32 {
  Host.output(Host.input());
  return 0;
}

export function count_vowels(): i32 {
  const text = Host.inputString();
  let count = 0;
  for (let at = 0; at < text.length; at++) if ("aeiouAEIOU".includes(text.charAt(at))) count++;
  Host.outputString('{"count":' + count.toString() + ',"begun":' + begun.toString() + "}");
  return 0;
}

export function everything(): i32 {
  const thing = Config.get("thing");
  Var.set("a", Uint8Array.wrap(String.UTF8.encode("this is var a")));
  const a = Var.getString("a");
  Var.remove("a");
  const gone = Var.get("a");
  Host.log(LogLevel.Warn, "a warning");
  const text = (thing === null ? "none" : thing) + ", " + (a === null ? "none" : a) + (gone === null ? "" : ", left");
  Host.outputMemory(Memory.allocateString(text));
  return 0;
}

export function fail(): i32 {
  return 3;
}

export function complain(): i32 {
  error_set(Memory.allocateString("what it says").offset);
  return 1;
}

export function broken(): i32 {
  throw new Error("on purpose");
}
