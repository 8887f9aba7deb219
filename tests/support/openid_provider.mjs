// The certified OpenID provider `oidc-provider`, for tests: `node openid_provider.mjs MODULE OPTIONS`, where OPTIONS is
// JSON with port, issuer, client, accounts (claims by login) and, to keep its keys, jwks. Its own development pages sign
// anybody in who names a login. It prints a line when it listens.
import { createServer } from "node:http";
import { generateKeyPairSync, randomUUID } from "node:crypto";

const { default: Provider } = await import(process.argv[2]);
const options = JSON.parse(process.argv[3]);

function key() {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...privateKey.export({ format: "jwk" }), kid: randomUUID(), use: "sig", alg: "RS256" };
}

const provider = new Provider(options.issuer, {
  clients: [options.client],
  jwks: { keys: [key()] },
  cookies: { keys: ["test"] },
  claims: { openid: ["sub"], profile: ["name", "preferred_username"], email: ["email"], groups: ["groups"] },
  conformIdTokenClaims: options.conform ?? true,
  pkce: { required: () => true },
  findAccount: (_context, id) =>
    Object.hasOwn(options.accounts, id) && {
      accountId: id,
      claims: () => ({ sub: id, ...options.accounts[id] }),
    },
});
createServer(provider.callback()).listen(options.port, "127.0.0.1", () => console.log("listens"));
