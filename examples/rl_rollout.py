"""A policy with memory: the first observation says which way to turn, eight steps later.

Nothing in between tells, so a policy without memory gets a mean return of 0.5. While acting, the
LSTM is called one step at a time and its state carried along; while learning, it is called once
over the whole rollout, which gives the same outputs and their gradients in one pass.
"""

import torch
from torch import Tensor, nn

from fused_lstm import LSTM

STEPS, ROWS = 8, 128  # length of an episode, episodes played at once


class Policy(nn.Module):
    """Observations [T, B, 2] and a state -> scores of two actions [T, B, 2], a value, the state."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.lstm = LSTM(2, hidden)
        self.action = nn.Linear(hidden, 2)
        self.value = nn.Linear(hidden, 1)

    def forward(
        self, seen: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        y, state = self.lstm(seen, state)
        return self.action(y), self.value(y).squeeze(-1), state


def observation(step: int, side: Tensor) -> Tensor:
    """What is seen [B, 2]: the side (-1 or 1) at the beginning, and a bell at the end."""
    bell = torch.full_like(side, float(step == STEPS - 1))
    return torch.stack([side if step == 0 else torch.zeros_like(side), bell], dim=-1)


@torch.no_grad()
def play(policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
    """One rollout: observations [T, B, 2], actions [T, B], returns [B]."""
    side = torch.randint(0, 2, (ROWS,)).float() * 2 - 1
    seen, actions, state = [], [], None
    for step in range(STEPS):
        seen.append(observation(step, side))
        scores, _, state = policy(seen[-1].unsqueeze(0), state)  # T = 1, the state goes on
        actions.append(torch.distributions.Categorical(logits=scores[0]).sample())
    returns = (actions[-1] * 2 - 1 == side).float()  # only the last turn counts
    return torch.stack(seen), torch.stack(actions), returns


def main() -> None:
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    recent: list[float] = []
    for update in range(1, 201):
        seen, actions, returns = play(policy)
        scores, values, _ = policy(seen)  # the whole rollout in one call
        chosen = torch.distributions.Categorical(logits=scores)
        advantage = returns - values  # [T, B]
        gain = (chosen.log_prob(actions) * advantage.detach()).mean()
        loss = advantage.square().mean() - gain - 0.01 * chosen.entropy().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-19:], returns.mean().item()]
        if update % 40 == 0:
            print(f"update {update:3d}: mean return {sum(recent) / len(recent):.3f}")


if __name__ == "__main__":
    main()
